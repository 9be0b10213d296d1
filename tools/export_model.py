#!/usr/bin/env python
"""The command `sohes export`, under its older name."""

import sys

from sohes_d2.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
