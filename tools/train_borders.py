#!/usr/bin/env python
"""The command `sohes train-borders`."""

import sys

from sohes_d2.cli.train_borders import main

if __name__ == "__main__":
    sys.exit(main())
