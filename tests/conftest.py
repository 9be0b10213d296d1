"""Settings of the whole test run."""

import os

# Before torch and numba are imported: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sohes_d2  # noqa: E402, F401  (before any test file imports detectron2)
