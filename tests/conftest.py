"""Settings of the whole test run."""

import logging
import os

# Set before torch and numba are imported, since several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

import sohes_d2  # noqa: E402, F401  (before any test file imports detectron2)

from detectron2.utils.logger import setup_logger  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--all-stop-points",
        action="store_true",
        help="stop trainings at each of their file operations, not at a few (takes minutes)",
    )


@pytest.fixture(autouse=True)
def _no_handlers_left():
    """Remove log handlers after each test: they write to its stdout, which is closed when the next test begins."""
    yield
    for name in ("detectron2", "fvcore", "sohes_d2"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    setup_logger.cache_clear()
