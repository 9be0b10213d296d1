"""Label files: the only door to COCO documents, lists of results and the shards of this project."""
