"""Bookkeeping of work units in workers: a unit whose worker dies is retried image by image."""

from __future__ import annotations

from .steps import STAGES, UnitResult, skipped_result
from .units import WorkUnit


class OpenUnits:
    """Units in flight. If its worker dies, a unit is split into images, whose results are joined again."""

    def __init__(self) -> None:
        self._units: dict[int, WorkUnit] = {}
        self._parts: dict[int, list[UnitResult]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: WorkUnit) -> int:
        """Register a unit and return its ticket."""
        self._units[self._next] = unit
        self._next += 1
        return self._next - 1

    def take_apart(self, ticket: int) -> list[WorkUnit]:
        """Split a lost unit into one unit per image; empty if it was split before."""
        if ticket in self._parts:
            return []
        self._parts[ticket] = []
        unit = self._units[ticket]
        return [WorkUnit(unit.shard, unit.number, (item,)) for item in unit.items]

    def close(self, ticket: int, outcome: UnitResult) -> UnitResult | None:
        """Add a result; return the result of the whole unit if it is complete, else None."""
        unit = self._units[ticket]
        if ticket in self._parts:
            self._parts[ticket].append(outcome)
            if len(self._parts[ticket]) < len(unit.items):
                return None
            outcome = _joined(unit, self._parts.pop(ticket))
        del self._units[ticket]
        return outcome


def failed_result(unit: WorkUnit, reason: str, trace: str = "") -> UnitResult:
    """Result of a unit whose worker failed or died: all its images are skipped."""
    results = [skipped_result(item, "worker", reason, trace) for item in unit.items]
    return UnitResult(unit, results, dict.fromkeys(STAGES, 0.0))


def lost_reason(exit_code: int | None) -> str:
    """The reason recorded for an image whose worker process dies on every attempt."""
    if exit_code == -9:
        return "its worker process was killed every time, as the system does when memory runs out"
    return "its worker process died every time" + ("" if exit_code is None else f" (exit code {exit_code})")


def unit_names(unit: WorkUnit) -> str:
    """File names of a unit, for messages."""
    return ", ".join(ascii(item.file_name) for item in unit.items)


def _joined(unit: WorkUnit, parts: list[UnitResult]) -> UnitResult:
    by_id = {result.image_id: result for part in parts for result in part.results}
    seconds = {stage: sum(part.seconds[stage] for part in parts) for stage in STAGES}
    return UnitResult(unit, [by_id[item.image_id] for item in unit.items], seconds)
