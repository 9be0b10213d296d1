"""Data sets for the tests of training."""

from helpers.tiny_training import scenes  # noqa: F401
