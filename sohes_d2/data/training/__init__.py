"""Training data: images and labels, augmented and mapped to model inputs."""
