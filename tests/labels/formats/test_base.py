"""Code shared by the formats."""

from __future__ import annotations

import errno
import os

import pytest

from sohes_d2.errors import OutputError
from sohes_d2.labels.formats.base import Photo, copy_photos
from sohes_d2.structures import files
from sohes_d2.structures.forest import Forest


def test_photos_are_copied_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "a.png").write_bytes(b"picture")
    photos = [Photo("b/a.png", Forest([], [], (4, 4)))]
    copy_photos(photos, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "b" / "a.png").read_bytes() == b"picture"

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files._RawFile, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        copy_photos(photos, tmp_path / "in", tmp_path / "full")
    assert not list((tmp_path / "full" / "b").iterdir())
