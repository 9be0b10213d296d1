"""Inference: forests of photos from a trained model, its export, and galleries of photos."""
