#!/usr/bin/env python
"""The command `sohes label`, under its older name."""

import sys

from sohes_d2.cli.label import main

if __name__ == "__main__":
    sys.exit(main())
