"""Selection of masks by number of entities, score and depth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .forest import Forest
from .hierarchy import Rules


@dataclass(frozen=True)
class Selection:
    """The options ``--entities``, ``--min-score`` and ``--max-depth`` of all commands, as a function of a forest.

    Attributes:
        entities: number of masks that explain a photo best (`Forest.select`); 0: all masks.
        min_score: masks with a lower score are dropped; in [0, 1].
        max_depth: deeper masks are dropped, 0: wholes only; None: any depth. With ``entities``, these are the wholes.
        parts: with ``entities``, also keep the masks inside each.
        rules: thresholds of the selection; None: those of the forest.
    """

    entities: int = 0
    min_score: float = 0.0
    max_depth: int | None = None
    parts: bool = True
    rules: Rules | None = None

    def __post_init__(self) -> None:
        if self.entities < 0:
            raise ValueError(f"entities must be at least 0, got {self.entities}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, got {self.min_score}")
        if self.max_depth is not None and self.max_depth < 0:
            raise ValueError(f"max_depth must be at least 0, got {self.max_depth}")

    def __bool__(self) -> bool:
        """Whether any mask may be dropped."""
        return bool(self.entities or self.min_score > 0 or self.max_depth is not None)

    def __call__(self, forest: Forest) -> Forest:
        """Return the selected masks of a forest."""
        if self.min_score > 0:
            forest = forest.filter(min_score=self.min_score)
        if self.entities:
            forest = forest.select(self.entities, parts=self.parts, rules=self.rules)
        return forest if self.max_depth is None else forest.filter(max_depth=self.max_depth)

    def describe(self) -> dict[str, Any]:
        """Json-ready."""
        return asdict(self)
