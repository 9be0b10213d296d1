#!/usr/bin/env python
"""The command `sohes inspect`, under its older name."""

import sys

from sohes_d2.cli.inspect import main

if __name__ == "__main__":
    sys.exit(main())
