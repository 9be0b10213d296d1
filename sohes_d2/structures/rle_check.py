"""Is a compressed RLE sound? pycocotools reads a broken one without complaint and may read past its end."""

from __future__ import annotations

import numpy as np

from .masks import RLE

# One character carries 6 bits: 5 of the value, and whether the value goes on in the next character.
_MORE, _SIGN = 0x20, 0x10


def run_lengths(counts: bytes | str) -> np.ndarray:
    """Decode COCO's compressed run lengths.

    The format is that of the COCO API: little-endian base 32 with sign, offset by 48, where each run from the fourth on
    is stored as its difference to the run two before.

    Args:
        counts: the ``counts`` of a compressed RLE.

    Returns:
        (K,) int64 lengths of the runs, outside and inside by turns. Unsound counts may give negative lengths.

    Raises:
        ValueError: a character that the format does not have, or a last value that is cut off.
    """
    raw = counts.encode("utf-8") if isinstance(counts, str) else bytes(counts)
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    if (codes & ~63).any():  # under 0 or over 63
        raise ValueError("counts hold a character that compressed RLEs do not have")
    last = (codes & _MORE) == 0
    if not last[-1]:
        raise ValueError("counts end in the middle of a value")
    ends = np.flatnonzero(last)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if lengths.max() > 8:  # 40 bits: more pixels than any image has, and the shifts below stay defined
        raise ValueError("counts hold a run longer than any image")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << shifts, starts)
    negative = (codes[ends] & _SIGN) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_rle(rle: RLE) -> None:
    """Verify that the runs of a compressed RLE tile its image exactly.

    Raises:
        ValueError: with the reason.
    """
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    if len(runs) and runs.min() < 0:
        raise ValueError("a run of the RLE has a negative length")
    if runs.sum() != height * width:
        raise ValueError(f"the runs of the RLE add up to {runs.sum()} pixels, its size says {height} x {width}")
