"""Inputs of `--images`, and the image ids they give."""

import errno
import json
import os

import pytest

from sohes_d2.data.sources import read_image_list
from sohes_d2.errors import ImageReadError, InputError
from sohes_d2.structures.images import read_image


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    for name in ["b.jpg", "a/2.PNG", "a/10.png", "a-b.webp", "ä ö\n.jpg", "notes.txt", ".hidden.jpg", ".cache/x.jpg"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_folder(folder, tmp_path):
    images = read_image_list(str(folder))
    assert images.file_names == ["a-b.webp", "a/10.png", "a/2.PNG", "b.jpg", "ä ö\n.jpg"]
    assert [item.image_id for item in images] == [1, 2, 3, 4, 5]
    assert images[1].path == str(folder / "a" / "10.png") and images.kind == "folder"
    (folder / "loop").symlink_to(folder)
    assert read_image_list(str(folder)).file_names == images.file_names
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.jpg").write_bytes(b"")
    (folder / "link").symlink_to(elsewhere)
    assert read_image_list(str(folder)).file_names[4] == "link/z.jpg"


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on posix systems only")
def test_names_that_are_not_utf8(folder):
    try:
        open(os.fsencode(folder) + b"/\xff\xfe.jpg", "wb").close()
    except OSError:
        pytest.skip("the file system wants utf-8")
    images = read_image_list(str(folder))
    assert images.file_names[-1] == "\udcff\udcfe.jpg" and os.path.exists(images[-1].path)
    assert json.loads(json.dumps(images.file_names)) == images.file_names
    images.describe()


def test_a_folder_that_cannot_be_listed_is_reported(folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if os.path.basename(path.rstrip("/")) == "a":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images = read_image_list(str(folder))
    assert images.file_names == ["a-b.webp", "a/", "b.jpg", "ä ö\n.jpg"]
    with pytest.raises(ImageReadError) as caught:
        read_image(images[1].path)
    assert caught.value.reason == "no permission to list the folder"
    with pytest.raises(InputError, match="cannot be listed: Permission denied"):
        read_image_list(str(folder / "a"))


def test_every_file_with_a_photo_suffix_is_listed(tmp_path):
    names = ["a.heic", "b.AVIF", "c.jxl", "d.dng", "e.jpg", "f.mpo", "g.jp2"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.png").symlink_to("none")
    (tmp_path / "circle.png").symlink_to("circle.png")
    expected = sorted([*names, "pipe.jpg", "dangling.png", "circle.png"])
    assert read_image_list(str(tmp_path)).file_names == expected


def test_a_list_can_be_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is empty"):
        read_image_list(str(tmp_path / "pipe"))
    reader, writer = os.pipe()
    os.write(writer, b"a.jpg\nb.jpg\n")
    os.close(writer)
    assert read_image_list(f"/dev/fd/{reader}").file_names == ["a.jpg", "b.jpg"]
    os.close(reader)
    with pytest.raises(InputError, match="socket or device"):
        read_image_list("/dev/zero")


def test_list(tmp_path, folder):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfphotos/b.jpg\r\n\nphotos/a/2.PNG\n" + os.fsencode(folder) + b"/a/10.png")
    images = read_image_list(str(path))
    assert images.file_names == ["photos/b.jpg", "photos/a/2.PNG", str(folder / "a" / "10.png")]
    assert list(images.image_ids) == [1, 2, 3] and all(os.path.exists(item.path) for item in images)
    path.write_text("b.jpg\n")
    assert os.path.exists(read_image_list(str(path), image_root=str(folder))[0].path)


def test_coco_keeps_ids_and_names(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [{"id": 42, "file_name": "x/y.jpg"}, {"id": 7, "file_name": "z.jpg"}]}))
    images = read_image_list(str(path), image_root="/data")
    assert [(item.image_id, item.file_name, item.path) for item in images] == [
        (42, "x/y.jpg", "/data/x/y.jpg"),
        (7, "z.jpg", "/data/z.jpg"),
    ]
    assert read_image_list(str(path))[1].path == str(tmp_path / "z.jpg")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("coco.json", '{"annotations": []}', "not a COCO data set"),
        ("coco.json", "[", "result list"),
        ("coco.json", '{"images": []}', "empty"),
        ("coco.json", '{"images": [{"id": "a", "file_name": "x.jpg"}]}', "not an integer"),
        ("coco.json", '{"images": [{"id": 1, "file_name": "x.jpg"}, {"id": 1, "file_name": "y"}]}', "have the id 1"),
        ("coco.json", '{"images": [{"id": 1, "file_name": "x.jpg"}, {"id": 2, "file_name": "./x.jpg"}]}', "both"),
        ("coco.json", '{"images": [{"id": 922337203685477, "file_name": "x.jpg"}]}', "922337203685476"),
        ("coco.json", '{"images": [{"id": -1, "file_name": "x.jpg"}]}', "not an integer"),
        ("coco.json", '{"images": [{"id": 1, "file_name": 3}]}', "file_name"),
        ("list.txt", "\n", "empty"),
        ("list.txt", "a.jpg\na.jpg\n", "'a.jpg' twice"),
        ("list.txt", "\0", "not a text file"),
    ],
)
def test_unusable_sources_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_image_list(str(tmp_path / name))


def test_a_single_image_is_a_list_of_one(tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(b"")
    images = read_image_list(str(tmp_path / "photo.jpg"))
    assert (images.kind, images.file_names, list(images.image_ids)) == ("image", ["photo.jpg"], [1])
    monkeypatch.chdir(tmp_path)
    assert read_image_list("photo.jpg")[0].path == "photo.jpg"


def test_common_forms_of_coco_files(tmp_path):
    records = [{"id": "3", "coco_url": "http://x/val2017/a.jpg"}, {"id": 4.0, "file_name": "b.jpg"}]
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"images": records}).encode())
    images = read_image_list(str(tmp_path / "c.json"))
    assert (images.image_ids, images.file_names) == ([3, 4], ["a.jpg", "b.jpg"])


def test_missing_and_empty_folders_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="does not exist"):
        read_image_list(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in the folder"):
        read_image_list(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="--image-root"):
        read_image_list(str(folder), image_root="/data")


def test_description_distinguishes_lists(tmp_path):
    path = tmp_path / "list.txt"
    digests = set()
    for content in ("a.jpg\nb.jpg", "b.jpg\na.jpg", "a.jpgb.jpg"):
        path.write_text(content)
        digests.add(read_image_list(str(path)).describe()["sha256"])
    assert len(digests) == 3
