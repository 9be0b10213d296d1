"""Running things: `labeling` makes pseudo-labels for folders of images."""
