"""Training: trainer, optimizer, hooks and the processes that train together."""
