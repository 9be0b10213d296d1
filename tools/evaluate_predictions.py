#!/usr/bin/env python
"""The command `sohes evaluate-predictions`, under the name that this tool has always had."""

import sys

from sohes_d2.cli.evaluate_predictions import main

if __name__ == "__main__":
    sys.exit(main())
