"""What the tests of pretraining share."""

import sys
from pathlib import Path

# Processes that a test starts find the module by this, too.
sys.path.insert(0, str(Path(__file__).parent))
