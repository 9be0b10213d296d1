#!/usr/bin/env python
"""The command `sohes show`, under its older name."""

import sys

from sohes_d2.cli.show import main

if __name__ == "__main__":
    sys.exit(main())
