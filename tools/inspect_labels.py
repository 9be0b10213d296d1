#!/usr/bin/env python
"""The command `sohes inspect`, under the name that this tool has always had."""

import sys

from sohes_d2.cli.inspect import main

if __name__ == "__main__":
    sys.exit(main())
