"""Data sets for the tests of loading."""

from helpers.tiny_training import scenes  # noqa: F401
