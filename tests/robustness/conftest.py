"""Lets the property-based tests share `harness` and `mutations`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
