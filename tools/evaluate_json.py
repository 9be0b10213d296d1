#!/usr/bin/env python
"""The command `sohes evaluate`, under its older name."""

import sys

from sohes_d2.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
