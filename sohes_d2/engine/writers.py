"""Writers of training metrics: metrics.json, TensorBoard and log.txt, robust to full disks."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any

from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter, get_event_storage

from ..structures.files import LineFile

logger = logging.getLogger(__name__)

LOG_FILE, METRICS_FILE = "log.txt", "metrics.json"
LOGGERS = ("fvcore", "detectron2", "sohes_d2")


def build_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """The writers of a training: log, metrics.json and TensorBoard."""
    os.makedirs(folder, exist_ok=True)
    return [CommonMetricPrinter(max_iter), MetricsWriter(os.path.join(folder, METRICS_FILE)), TensorboardWriter(folder)]


class MetricsWriter(EventWriter):
    """One JSON line per iteration with new values, like Detectron2's `JSONWriter`, except that a line cut off by a kill
    is removed when training resumes.
    """

    def __init__(self, path: str, window_size: int = 20):
        """
        Args:
            path: the file, to which lines are appended.
            window_size: iterations over which the median of smoothed values is taken.

        Raises:
            OutputError: the file cannot be written, here and by `write`.
        """
        self._lines = LineFile(path)
        _report_damaged_lines(path)
        self._window_size = window_size
        self._last = -1

    def write(self) -> None:
        """Append new values."""
        new: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last:
                new[iteration][name] = value
        if not new:
            return
        self._last = max(new)
        self._lines.append(json.dumps({**new[i], "iteration": i}, sort_keys=True) for i in sorted(new))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _report_damaged_lines(path: str) -> None:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError:
                logger.warning(
                    "%s: line %d is damaged (not valid json) and its values are lost; delete it", path, number
                )


class TensorboardWriter(EventWriter):
    """Detectron2's writer, except that a failed write, for example on a full disk, does not end a training."""

    def __init__(self, folder: str):
        """
        Args:
            folder: output folder.
        """
        self._writer: EventWriter | None = None
        _quiet_writer_threads()
        try:
            self._writer = TensorboardXWriter(folder)
        except OSError as error:
            self._give_up(error)

    def write(self) -> None:
        """Append new values."""
        if self._writer is None:
            storage = get_event_storage()
            storage.clear_images()
            storage.clear_histograms()
            return
        try:
            self._writer.write()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        logger.warning("TensorBoard's file cannot be written, training continues without it: %s", error)


def _quiet_writer_threads() -> None:
    """Suppress tracebacks from TensorBoard's thread; its errors are raised again at the next write."""
    before = threading.excepthook
    if getattr(before, "quiet", False):
        return

    def hook(args: Any) -> None:
        if not (issubclass(args.exc_type, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    hook.quiet = True  # type: ignore[attr-defined]  # prevents a second replacement
    threading.excepthook = hook


class LogFile(logging.FileHandler):
    """log.txt; failed writes are ignored."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if that is possible."""
        with suppress(OSError):  # the file could not be opened
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore records that cannot be written."""

    def close(self) -> None:
        """Close the file, ignoring errors of the disk."""
        try:
            super().close()
        except OSError:
            self.stream = None


def log_to(folder: str, rank: int) -> None:
    """Make the loggers of Detectron2 and this project write to log.txt in a folder, and to no other `LogFile`."""
    name = LOG_FILE + (f".rank{rank}" if rank else "")
    handler = LogFile(os.path.join(folder, name), encoding="utf-8", delay=True)
    line_format = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
    handler.setFormatter(logging.Formatter(line_format, datefmt="%m/%d %H:%M:%S"))
    for target in map(logging.getLogger, LOGGERS):
        for previous in [h for h in target.handlers if isinstance(h, LogFile)]:
            target.removeHandler(previous)
            previous.close()
        target.addHandler(handler)
