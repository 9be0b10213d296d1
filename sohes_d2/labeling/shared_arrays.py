"""Arrays in shared memory, passed between processes without copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

_ALIGNMENT = 64


@dataclass(frozen=True)
class SharedArrays:
    """A block of shared memory with arrays; pickled as its name and layout.

    Attributes:
        name: name of the block.
        layout: offset in bytes, shape and dtype of each array.
    """

    name: str
    layout: tuple[tuple[int, tuple[int, ...], str], ...]

    @classmethod
    def put(cls, arrays: Sequence[np.ndarray]) -> SharedArrays:
        """Copy arrays into a new block, which exists until `unlink`."""
        layout, end = [], 0
        for array in arrays:
            layout.append((end, array.shape, array.dtype.str))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        block = SharedMemory(create=True, size=max(1, end))
        for array, view in zip(arrays, _views(block, layout)):
            view[...] = array
        block.close()
        return cls(block.name, tuple(layout))

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[np.ndarray]]:
        """Context manager that yields the arrays; they are valid only inside it."""
        block = SharedMemory(name=self.name)
        views = _views(block, self.layout)
        try:
            yield views
        finally:
            views.clear()
            with contextlib.suppress(BufferError):  # a propagating exception may still hold a view
                block.close()

    def unlink(self) -> None:
        """Free the block; does nothing if it is already freed."""
        with contextlib.suppress(FileNotFoundError):
            block = SharedMemory(name=self.name)
            block.close()
            block.unlink()


def _views(block: SharedMemory, layout: Sequence[tuple[int, tuple[int, ...], str]]) -> list[np.ndarray]:
    return [np.ndarray(shape, dtype, buffer=block.buf, offset=offset) for offset, shape, dtype in layout]
