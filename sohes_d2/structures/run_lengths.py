"""Validation and decoding of RLE masks; pycocotools reads broken ones past their end."""

from __future__ import annotations

import numpy as np

from ..errors import RecordError

# One character carries 6 bits: 5 of the value, and whether the value goes on in the next character.
_MORE, _SIGN = 0x20, 0x10
_REASON = "runs of the RLE"


def run_lengths(counts: bytes | str) -> np.ndarray:
    """Decode COCO's compressed run lengths.

    The format is that of the COCO API: little-endian base 32 with sign, offset by 48, where each run from the fourth on
    is stored as its difference to the run two before.

    Args:
        counts: the ``counts`` of a compressed RLE.

    Returns:
        (K,) int64 lengths of the runs, outside and inside by turns. Unsound counts may give negative lengths.

    Raises:
        RecordError: a character that the format does not have, or a last value that is cut off.
    """
    raw = counts.encode("utf-8", "replace") if isinstance(counts, str) else bytes(counts)
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    if (codes & ~63).any():  # under 0 or over 63
        raise RecordError("counts hold a character that compressed RLEs do not have", _REASON)
    last = (codes & _MORE) == 0
    if not last[-1]:
        raise RecordError("counts end in the middle of a value", _REASON)
    ends = np.flatnonzero(last)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if lengths.max() > 8:  # 40 bits: more pixels than any image has, and the shifts below stay defined
        raise RecordError("counts hold a run longer than any image", _REASON)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << shifts, starts)
    negative = (codes[ends] & _SIGN) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_runs(runs: np.ndarray, image_size: tuple[int, int]) -> None:
    """Verify that run lengths tile an image exactly.

    Args:
        runs: (K,) int64.
        image_size: (H, W) in pixels.

    Raises:
        RecordError: with the reason.
    """
    height, width = image_size
    if len(runs) > height * width + 1:
        raise RecordError(f"the RLE has {len(runs)} runs, more than the pixels of a {height} x {width} image", _REASON)
    if len(runs) and runs.min() < 0:
        raise RecordError("a run of the RLE has a negative length", _REASON)
    # a run at a time first: the sum of damaged ones may not fit 64 bits
    total = runs.sum() if not len(runs) or runs.max() <= height * width else runs.max()
    if total != height * width:
        raise RecordError(f"the runs of the RLE add up to {total} pixels, its image has {height} x {width}", _REASON)


def merge_empty_runs(runs: np.ndarray) -> np.ndarray:
    """The same mask without runs of length 0, but for the first one of a mask that begins inside.

    Args:
        runs: (K,) int64, outside and inside by turns.
    """
    pixels = runs.sum()
    # where inside and outside change; two changes in one place are none
    places, times = np.unique(np.cumsum(runs)[:-1], return_counts=True)
    places = places[(times % 2 == 1) & (places < pixels)]
    return np.diff(np.concatenate([[0], places, [pixels]]))
