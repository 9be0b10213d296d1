"""Command lines: one module per subcommand of `sohes`, and their shared code."""
