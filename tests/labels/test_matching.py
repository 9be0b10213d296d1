"""Matching images of two files by name."""

import pytest

from sohes_d2.errors import InputError
from sohes_d2.labels.matching import last_part, match_images
from sohes_d2.labels.reader import LabelFile


def match(names, others, *parts):
    files = (
        LabelFile(path, {i: {"id": i, "file_name": name} for i, name in side.items()})
        for path, side in (("a.json", names), ("b.json", others))
    )
    return match_images(*files, *parts)


def test_full_names_are_used_unless_last_parts_match_more():
    assert match({1: "a/x.jpg", 2: "y.jpg"}, {7: "y.jpg", 8: "a/x.jpg"}) == ({1: 8, 2: 7}, "name")
    assert match({1: "a/x.jpg", 2: "y.jpg"}, {7: "b\\y.jpg", 8: "x.jpg"}) == ({1: 8, 2: 7}, "basename")
    assert match({1: "x.jpg"}, {7: "b/x.jpg"}, ("name",)) == ({1: None}, "name")


def test_repeated_names():
    # repeated last parts are not used, but full names are
    assert match({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "a/x.jpg", 8: "c.jpg"}) == ({1: 7, 2: None}, "name")
    for parts in (("name", "basename"), ("name",)):
        with pytest.raises(InputError, match="b.json: 'x.jpg' occurs twice"):
            match({1: "x.jpg"}, {7: "x.jpg", 8: "x.jpg"}, parts)
    with pytest.raises(InputError, match="a.json: 'x.jpg'"):
        match({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "x.jpg"}, ("basename",))


def test_last_part():
    assert [last_part(name) for name in ("x.jpg", "a/b/x.jpg", "a\\b\\x.jpg")] == ["x.jpg"] * 3
