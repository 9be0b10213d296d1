"""Basic structures shared by all other packages: masks, forests and images. No neural networks."""
