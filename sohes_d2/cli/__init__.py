"""Command lines: what all tools share."""
