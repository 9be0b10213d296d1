"""Lets the tests of models share `golden` and `matching_case`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
