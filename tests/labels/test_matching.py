"""The same images in two files, by their names."""

import pytest

from sohes_d2.labels.matching import RepeatedNameError, last_part, match_by_name


def test_full_names_unless_their_last_parts_find_more():
    assert match_by_name({1: "a/x.jpg", 2: "y.jpg"}, {7: "y.jpg", 8: "a/x.jpg"}) == ({1: 8, 2: 7}, "name")
    assert match_by_name({1: "a/x.jpg", 2: "y.jpg"}, {7: "b\\y.jpg", 8: "x.jpg"}) == ({1: 8, 2: 7}, "basename")
    assert match_by_name({1: "x.jpg"}, {7: "b/x.jpg"}, ("name",)) == ({1: None}, "name")


def test_repeated_names():
    # last parts that repeat are no help; the full names stand
    assert match_by_name({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "a/x.jpg", 8: "c.jpg"}) == ({1: 7, 2: None}, "name")
    for parts in (("name", "basename"), ("name",)):
        with pytest.raises(RepeatedNameError, match="'x.jpg' occurs twice"):
            match_by_name({1: "x.jpg"}, {7: "x.jpg", 8: "x.jpg"}, parts)
    with pytest.raises(RepeatedNameError, match="'x.jpg'"):
        match_by_name({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "x.jpg"}, ("basename",))


def test_last_part():
    assert [last_part(name) for name in ("x.jpg", "a/b/x.jpg", "a\\b\\x.jpg")] == ["x.jpg"] * 3
