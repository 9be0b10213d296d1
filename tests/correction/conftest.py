"""Data sets for the tests of phase 3's training."""

from helpers.tiny_training import scenes  # noqa: F401
