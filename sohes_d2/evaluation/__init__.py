"""Evaluation without classes: recall and precision of masks and boxes, and the quality of the hierarchy itself."""
