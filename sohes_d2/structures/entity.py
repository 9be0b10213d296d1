"""Entity: one mask of a forest, with its parent and children; selection of masks by number, score and depth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .hierarchy import NO_PARENT, Rules
from .masks import RLE, decode_mask

if TYPE_CHECKING:
    from .forest import Forest


class Entity:
    """A view of one mask of a `Forest`, without copies.

    Attributes:
        forest: the forest of the mask.
        index: its index in the forest.
    """

    __slots__ = ("forest", "index")

    def __init__(self, forest: Forest, index: int):
        self.forest = forest
        self.index = index

    def __repr__(self) -> str:
        return f"Entity({self.name!r}, score={self.score:.3f}, area={self.area}, box={self.box})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entity) and self.forest is other.forest and self.index == other.index

    def __hash__(self) -> int:
        return hash((id(self.forest), self.index))

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, decoded on each access."""
        return decode_mask(self.rle)

    @property
    def rle(self) -> RLE:
        """COCO's compressed RLE."""
        return self.forest.masks[self.index]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in pixels, tight around the mask."""
        x, y, width, height = self.forest.boxes[self.index]
        return int(x), int(y), int(width), int(height)

    @property
    def area(self) -> int:
        """Area in pixels."""
        return int(self.forest.areas[self.index])

    @property
    def score(self) -> float:
        """Score in [0, 1]."""
        return float(self.forest.scores[self.index])

    @property
    def depth(self) -> int:
        """0 for a whole, 1 for a part, 2 or more for subparts."""
        return int(self.forest._depths[self.index])

    @property
    def name(self) -> str:
        """Path name such as "2.1.3": the third part of the first part of the second whole, by descending area."""
        return self.forest.names[self.index]

    @property
    def source(self) -> str:
        """The step that found it ("look0", "global", "local", "model", ...)."""
        return self.forest.sources[self.index]

    @property
    def parent(self) -> Entity | None:
        """Its parent; None for a whole."""
        parent = int(self.forest.parents[self.index])
        return None if parent == NO_PARENT else Entity(self.forest, parent)

    @property
    def children(self) -> list[Entity]:
        """Its direct parts, in the order of the forest."""
        return [Entity(self.forest, int(k)) for k in self.forest.children(self.index)]

    @property
    def chain(self) -> list[Entity]:
        """The path from its root down to this entity, both included."""
        chain = [self]
        while (parent := chain[-1].parent) is not None:
            chain.append(parent)
        return chain[::-1]


@dataclass(frozen=True)
class Selection:
    """The options ``--entities``, ``--min-score`` and ``--max-depth`` of all commands, as a function of a forest.

    Attributes:
        entities: number of masks that explain a photo best (`Forest.select`); 0: all masks.
        min_score: masks with a lower score are dropped; in [0, 1].
        max_depth: deeper masks are dropped; None: no limit; 0: only wholes, with ``entities`` the selected masks.
        parts: with ``entities``, also keep the masks inside the selected ones.
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
        """The options as a json-ready dict."""
        return asdict(self)
