"""Hypothesis strategies that damage a good json file: its values, its structure, its text, its bytes."""

from __future__ import annotations

import codecs
import copy
import gzip
import json
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400  # too large for a float

# Wrong values that tools, people and bugs write.
ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2, 3, 0.0, -0.0, 1.0, 0.5, -7.25, 1e-9, 1e20, 1e300, float("nan"), float("inf")]
        + [2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**60, 2**63 - 1, 2**63, 2**64, -(2**63), HUGE, -HUGE]
        + ["", " ", "0", "1", "1.0", "007", "nan", "true", "false", "None", "null", "x", "\0", "ä\u2028\ud83d", "../a"]
        + ["a" * 5000, "1" * 30, "1e400", [], {}, [[]], [[[]]], [None], [0], [1, 2], {"a": 1}, {"counts": []}]
    ),
    st.integers(-5, 300),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    st.lists(st.integers(-2, 70), max_size=9),
)
ODD_SEGMENTATIONS = st.one_of(
    st.lists(st.lists(st.integers(-3, 60), max_size=11), max_size=4),
    st.lists(st.lists(st.lists(st.integers(0, 50), max_size=3), max_size=5), max_size=3),
    st.lists(st.floats(-1e9, 1e9), max_size=12),
    st.tuples(st.integers(1, 3000), st.sampled_from([1e4, 2e7, 1e12])).map(
        lambda t: [[float(v) for k in range(t[0]) for v in (k % 2 * t[1], k)]]
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda t: [[k % 2 for k in range(t[1])]] * t[0]),
    st.builds(
        lambda size, counts: {"size": size, "counts": counts},
        st.one_of(st.just([40, 50]), st.lists(st.sampled_from([40, 50, 0, -1, "40", 40.0, 10**9, None]), max_size=3)),
        st.one_of(
            st.lists(st.integers(-3, 2000), max_size=12),
            st.integers(1, 20000).map(lambda n: [0] * n + [2000]),
            st.integers(1, 20000).map(lambda n: "0" * n + "`n1"),
            st.text(st.characters(min_codepoint=45, max_codepoint=115), max_size=30),
            st.binary(max_size=8).map(lambda b: b.decode("latin-1")),
        ),
    ),
)
NAMES_OF_FIELDS = [
    *("id", "image_id", "segmentation", "bbox", "area", "iscrowd", "score", "parent_id", "category_id", "ignore"),
    *("file_name", "height", "width", "coco_url", "images", "annotations", "categories", "info", "counts", "size"),
    *("ancestor_scores", "depth", "level", "source", "neg_category_ids", "crc32"),
]


ACTIONS = ["set", "set", "set", "segment", "drop", "double", "add", "copy", "text", "wrap"]
INSERTIONS = [b"\0", b"\xff", b"NaN", b",", b"}", b"]", b"[", b'"', b"\n", b"1e999", b'"id":7,', b"9" * 5000, b"\\u"]


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to all values of a document, including () for the document; only the first 8 items of lists."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths_of(item, (*path, key))
    elif isinstance(value, list):
        for k, item in enumerate(value[:8]):
            found += paths_of(item, (*path, k))
    return found


def _owner(document: Any, path: tuple) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


@st.composite
def mutated_documents(draw: Any, document: Any, most: int = 3) -> Any:
    """A json document with 1 to ``most`` values changed, removed, duplicated, moved, wrapped or nested.

    Inserted values are copied, so that later changes do not modify the samples of the strategies.
    """
    box = [copy.deepcopy(document)]
    for left in reversed(range(draw(st.integers(1, most)))):
        path = (0, *draw(st.sampled_from(paths_of(box[0]))))
        owner, key = _owner(box, path), path[-1]
        action = draw(st.sampled_from(ACTIONS))
        if action == "set":
            owner[key] = copy.deepcopy(draw(ODD_VALUES))
        elif action == "segment":
            records = [p for p in paths_of(box[0]) if p and p[-1] == "segmentation"]
            if records:
                path = (0, *draw(st.sampled_from(records)))
                _owner(box, path)[path[-1]] = copy.deepcopy(draw(ODD_SEGMENTATIONS))
        elif action == "drop" and len(path) > 1:
            del owner[key]
        elif action == "double" and isinstance(owner, list) and owner is not box:
            owner.insert(key, copy.deepcopy(owner[key]))
        elif action == "add" and isinstance(owner, dict):
            owner[draw(st.sampled_from(NAMES_OF_FIELDS))] = copy.deepcopy(draw(ODD_VALUES))
        elif action == "copy":
            other = _owner(box, source := (0, *draw(st.sampled_from(paths_of(box[0])))))[source[-1]]
            owner[key] = copy.deepcopy(other)
        elif action == "text" and not isinstance(owner[key], (dict, list)):
            owner[key] = str(owner[key])
        elif action == "wrap":
            # Deep only as the last change, since walking and copying the document is recursive.
            for _ in range(draw(st.sampled_from([1, 2, 5] if left else [1, 2, 5, 200]))):
                owner[key] = [owner[key]]
    return box[0]


@st.composite
def damaged_bytes(draw: Any, data: bytes) -> bytes:
    """Damaged bytes: cut, with bit flips, zeros or insertions, in another encoding, or as after a failed download."""
    action = draw(st.sampled_from(["cut", "flip", "flip", "zeros", "insert", "remove", "again", "encode", "deep"]))
    where = draw(st.integers(0, max(0, len(data) - 1)))
    if action == "cut":
        return data[:where]
    if action == "flip":
        damaged = bytearray(data)
        for _ in range(draw(st.integers(1, 3))):
            if damaged:
                damaged[draw(st.integers(0, len(damaged) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(damaged)
    length = draw(st.sampled_from([1, 2, 10, 300]))
    if action == "zeros":
        return data[:where] + bytes(length) + data[where + length :]
    if action == "insert":
        return data[:where] + draw(st.sampled_from(INSERTIONS)) + data[where:]
    if action == "remove":
        return data[:where] + data[where + length :]
    if action == "again":
        return data + draw(st.sampled_from([data, b" ", b"x", b"\0" * 100, b"\n" * 100]))
    if action == "encode":
        text = data.decode("utf-8", "replace")
        return draw(
            st.sampled_from(
                [
                    codecs.BOM_UTF8 + data,
                    codecs.BOM_UTF8 * 2 + data,
                    text.encode("utf-16"),
                    text.encode("utf-32"),
                    codecs.BOM_UTF16_LE,
                    gzip.compress(data, mtime=0),
                    b"<html>not found</html>",
                    b"",
                    b"\x89PNG\r\n\x1a\n" + data,
                ]
            )
        )
    depth = draw(st.sampled_from([50, 1100, 100_000]))
    return data[:where] + draw(st.sampled_from([b"[", b'{"a":'])) * depth + data[where:]


def dump(document: Any) -> bytes:
    """Json text as Python writes it: with NaN and Infinity as such, and lone surrogates as escapes."""
    return json.dumps(document).encode("ascii")


@st.composite
def odd_files(draw: Any, document: Any) -> bytes:
    """The bytes of a damaged file, in three of four cases with changed values."""
    if draw(st.integers(0, 3)):
        return dump(draw(mutated_documents(document)))
    return draw(damaged_bytes(dump(document)))
