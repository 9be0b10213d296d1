#!/usr/bin/env python
"""The command `sohes evaluate-predictions`, under its older name."""

import sys

from sohes_d2.cli.evaluate_predictions import main

if __name__ == "__main__":
    sys.exit(main())
