"""Training: trainer, optimizer, hooks and distributed processes."""
