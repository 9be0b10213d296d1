"""Running things: pseudo-labels for folders of images."""
