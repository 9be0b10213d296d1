#!/usr/bin/env python
"""The command `sohes setup`, under its older name."""

import sys

from sohes_d2.cli.setup import main

if __name__ == "__main__":
    sys.exit(main())
