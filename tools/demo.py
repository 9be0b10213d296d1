#!/usr/bin/env python
"""The command `sohes demo`, under its older name."""

import sys

from sohes_d2.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
