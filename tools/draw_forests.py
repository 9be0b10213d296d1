#!/usr/bin/env python
"""The command `sohes draw`, under its older name."""

import sys

from sohes_d2.cli.draw import main

if __name__ == "__main__":
    sys.exit(main())
