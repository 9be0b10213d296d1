"""Data on disk: lists of images, and label files as COCO json shards (written, resumed, merged, read lazily)."""
