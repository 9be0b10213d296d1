#!/usr/bin/env python
"""The command `sohes demo`, under the name that this tool has always had."""

import sys

from sohes_d2.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
