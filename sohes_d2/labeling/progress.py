"""Progress of a run: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import datetime
import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts images; those done before this run count for the position but not for the speed."""

    def __init__(self, total: int, terminal: bool | None = None):
        self._total = total
        self._before = self._done = self._skipped = self._masks = 0
        self._start = self._last = time.monotonic()
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=total, unit="image", dynamic_ncols=True, smoothing=0.05) if terminal else None

    def count_before(self, images: int) -> None:
        """Images found done."""
        self._before += images
        if self._bar is not None:
            self._bar.initial += images
            self._bar.update(images)

    def count(self, images: int, masks: int, skipped: int) -> None:
        """Images done now, skipped ones included."""
        self._done += images
        self._masks += masks
        self._skipped += skipped
        if self._bar is not None:
            self._bar.set_postfix(masks=self._masks, skipped=self._skipped, refresh=False)
            self._bar.update(images)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """The state in words."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = self._done / seconds
        position = self._before + self._done
        left = datetime.timedelta(seconds=round((self._total - position) / speed)) if speed else "?"
        made = f"{self._masks} masks, {self._skipped} skipped"
        return f"{position}/{self._total} images, {speed:.2f} images/s, {left} left, {made}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            logger.info(self.line())
