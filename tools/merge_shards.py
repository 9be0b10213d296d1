#!/usr/bin/env python
"""The command `sohes merge`, under its older name."""

import sys

from sohes_d2.cli.merge import main

if __name__ == "__main__":
    sys.exit(main())
