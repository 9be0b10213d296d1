"""Without the library, a one-line error says what to install."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["lightly"] = None
import sohes_d2, sohes_d2.pretraining, sohes_d2.pretraining.dense_check
try:
    import sohes_d2.pretraining.trainer
except ImportError as error:
    print(error)
"""


def test_a_missing_library_is_reported_with_the_remedy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert "needs the library lightly" in done.stdout and "pip install 'sohes_d2[pretrain]'" in done.stdout
    assert "pip install --no-deps 'lightly" in done.stdout
