"""Data sets for the tests of phase 3's training."""

import sys
from pathlib import Path

# Processes that a test starts find the modules by this, too.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "engine")]

from tiny_training import scenes  # noqa: E402, F401
