"""Inference: predict forests with a trained model, export it, and write galleries."""
