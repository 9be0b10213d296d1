#!/usr/bin/env python
"""The command `sohes train`, under its older name."""

import sys

from sohes_d2.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
