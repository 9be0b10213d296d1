"""The training data: a stream of images and labels, mapped to what the model takes."""
