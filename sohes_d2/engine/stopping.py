"""SIGINT and SIGTERM during training: the current iteration is finished and a checkpoint is written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST = 2.0  # seconds within which a signal may arrive twice: to the process group and to its first process


class Stopping:
    """Stop requests by signals.

    Outside of an iteration they raise KeyboardInterrupt at once. Within one they are deferred to its end; a second
    signal raises it at once.

    Attributes:
        requested: whether the training should end after this iteration.
    """

    def __init__(self) -> None:
        self._reset(lambda: None)

    def _reset(self, tell: Callable[[], None]) -> None:
        self._within = False
        self._asked_at: float | None = None
        self._tell = tell

    @property
    def requested(self) -> bool:
        return self._asked_at is not None

    def begin_iteration(self) -> None:
        """Defer signals from now on."""
        self._within = True

    def end_iteration(self) -> None:
        """Stop deferring signals: the state can be saved again.

        Raises:
            KeyboardInterrupt: a signal arrived.
        """
        self._within = False
        if self.requested:
            raise KeyboardInterrupt

    @contextmanager
    def on_signals(self, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; does nothing outside of the main thread.

        Args:
            tell: called when a signal arrives.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._reset(tell)
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        before = self._asked_at
        if before is None:
            self._asked_at = now
            self._tell()
        if not self._within:
            raise KeyboardInterrupt
        if before is not None and now - before > _ONE_REQUEST:
            self._within = False
            raise KeyboardInterrupt


stopping = Stopping()
