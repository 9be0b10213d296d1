#!/usr/bin/env python
"""The command `sohes pretrain`, under its older name."""

import sys

from sohes_d2.cli.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
