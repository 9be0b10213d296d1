"""Data sets for the tests of training."""

import sys
from pathlib import Path

# Processes that a test starts find the module by this, too.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_training import scenes  # noqa: E402, F401
