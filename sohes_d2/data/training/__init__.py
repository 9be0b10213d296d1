"""Training data: a stream of images and labels, mapped to model inputs."""
