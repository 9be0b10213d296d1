#!/usr/bin/env python
"""The command `sohes export-onnx`, under its older name."""

import sys

from sohes_d2.cli.export_onnx import main

if __name__ == "__main__":
    sys.exit(main())
