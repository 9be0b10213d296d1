"""Class-agnostic evaluation: recall and precision of masks and boxes, and quality of the hierarchy."""
