"""Conversion to and from formats of other tools: masks, parents, scores, and unreadable files."""

from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.cli.convert import main
from sohes_d2.errors import InputError, OutputError
from sohes_d2.labels.formats import FORMATS, format_module
from sohes_d2.labels.formats.base import Entity, Options, Photo, build_photo, copy_photos, write_photos
from sohes_d2.labels.formats.labelstudio import pack, unpack
from sohes_d2.labels.formats.shapes import cropped, crops, fill, joined, rings_of
from sohes_d2.labels.formats.voc import MAX_INSTANCES, instance_map
from sohes_d2.structures import files
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import decode_mask, encode_masks

TOOL = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "check_formats.py"))
LIBRARIES = {
    "labelstudio": ["label_studio_sdk"],
    "cvat": ["datumaro"],
    "fiftyone": ["fiftyone"],
    "labelme": ["labelme"],
}
LIBRARIES.update({"yolo": ["supervision"], "voc": ["supervision", "datumaro"]})
EXACT = ("labelstudio", "cvat", "fiftyone")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return folder, TOOL["generate"](folder, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(made, tmp_path, name):
    images, photos = made
    write_photos(tmp_path / "labels.json", photos, "a test")
    target = tmp_path / "converted"
    labels = ["--labels", str(tmp_path / "labels.json"), "--images", str(images), "--tolerance", "0"]
    assert main([*labels, "--to", name, "--output", str(target)]) == 0
    back = ["--labels", str(target), "--images", str(images), "--output", str(tmp_path / "back.json")]
    assert main([*back, "--from", name]) == 0
    before, after = (json.loads((tmp_path / file).read_text()) for file in ("labels.json", "back.json"))
    assert before["images"] == after["images"]
    exact = [True] * 14
    if name in ("yolo", "voc"):  # the two components of a mask are joined by a line
        exact[5] = exact[12] = False
    for old, new, same in zip(before["annotations"], after["annotations"], exact):
        assert (old["segmentation"] == new["segmentation"]) == same
        if name == "yolo":
            assert "parent_id" not in new and "score" not in new
        else:
            assert new["parent_id"] == old["parent_id"] and new["score"] == pytest.approx(old["score"], abs=1e-6)
    assert len(before["annotations"]) == len(after["annotations"]) == 14


def test_selected_masks_are_converted(made, tmp_path, capsys):
    write_photos(tmp_path / "labels.json", made[1], "a test")
    line = ["--labels", str(tmp_path / "labels.json"), "--to", "cvat", "--output", str(tmp_path / "c.xml")]
    for more, masks in (
        (["--max-depth", "0"], 8),
        (["--entities", "1", "--max-depth", "0"], 2),
        (["--min-score", "1"], 0),
    ):
        assert main([*line, *more]) == 0
        assert f"2 images, {masks} masks" in capsys.readouterr().out
    assert main([*line[:-4], "--to", "cvta", "--output", str(tmp_path / "c.xml")]) == 2
    assert "Did you mean cvat?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in EXACT])
def test_tolerance_bounds_the_loss_of_polygons(made, tmp_path, name):
    images, photos = made
    sizes = []
    for tolerance, least in ((0.0, 0.97), (1.0, 0.85)):
        _, _, (found, _, least_iou, *_) = next(TOOL["check_format"](name, photos, images, _fresh(tmp_path), tolerance))
        assert found == 1 and least_iou > least
        sizes.append(sum(p.stat().st_size for p in tmp_path.rglob("*") if p.suffix in (".json", ".txt", ".xml")))
    assert sizes[1] < sizes[0]


def _fresh(folder):
    shutil.rmtree(folder / "work", ignore_errors=True)
    (folder / "work").mkdir()
    return folder / "work"


@pytest.mark.parametrize(
    ("name", "library"), [(name, library) for name, found in LIBRARIES.items() for library in found]
)
def test_against_the_library_of_the_format(made, tmp_path, name, library):
    """If the library is installed, it reads our files, and we read files that it writes."""
    pytest.importorskip(library)
    rows = list(TOOL["check_format"](name, made[1], made[0], tmp_path, 0.0))
    rows = [(way, numbers) for way, by, numbers in rows if by.replace("-", "_") == library]
    assert rows
    for way, (found, mean_iou, least_iou, _, _, score, parent) in rows:
        if way == "in" and library == "supervision":
            continue  # it splits masks with several components
        least = 1.0 if name in EXACT else 0.97
        assert found == 1
        if (name, library) == ("voc", "datumaro"):  # reads the map of instances, where parts cover their wholes
            assert mean_iou > 0.7
        else:
            assert least_iou >= least
        if name in (*EXACT, "labelme") and way == "out":
            assert score == parent == 1


def mask_of(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def test_outlines_of_odd_masks():
    masks = [
        mask_of("....", ".#..", "....", "...."),
        mask_of("####", "#..#", "#..#", "####"),
        mask_of("#...", ".#..", "..#.", "...#"),
        mask_of("#.#.", "....", "#.##", "..##"),
        mask_of("####", "####", "####", "####"),
    ]
    for mask in masks:
        (rle,) = encode_masks([mask])
        rings = rings_of(rle, 0)
        assert all(len(ring) >= 3 for ring in rings)
        assert np.array_equal(decode_mask(fill(rings, mask.shape)), mask)
        assert decode_mask(fill([joined(rings)], mask.shape))[mask].all()


def test_masks_cropped_to_a_box():
    mask = np.random.default_rng(0).random((9, 13)) < 0.5
    for whole in (mask, np.zeros_like(mask), ~np.zeros_like(mask)):
        (rle,) = encode_masks([whole])
        for x, y, w, h in ((0, 0, 13, 9), (3, 2, 4, 5), (12, 8, 1, 1), (5, 0, 0, 0)):
            assert np.array_equal(cropped(rle, (x, y, w, h)), whole[y : y + h, x : x + w])


def test_run_lengths_of_label_studio():
    rng = np.random.default_rng(0)
    wide = np.zeros((6, 7), bool)
    wide[1:3] = wide[3, :2] = wide[4, 5:] = wide[5] = True  # runs that continue in the next row, up to the end
    for mask in (rng.random((9, 13)) < 0.5, np.zeros((5, 4), bool), np.ones((300, 200), bool), wide, wide[::-1, ::-1]):
        (rle,) = encode_masks([mask])
        [(box, inside)] = crops([rle])
        packed = pack(inside, box, mask.shape)
        if mask is wide:  # a header of 53 bits, and 19 for each of four runs
            assert len(packed) == 17
        values = unpack(packed, mask.size * 4).reshape(*mask.shape, 4)
        assert np.array_equal(values, np.where(mask, 255, 0)[..., None].repeat(4, 2))
    # literal values, as packed by its editor: two bits for the kind, three for the count
    literal = (
        f"{4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + "011" + "".join(f"{v:08b}" for v in (1, 2, 3, 4))
    )
    data = [int(literal[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(literal), 8)]
    assert unpack(data, 4).tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="end too early"):
        unpack(data[:-2], 4)
    with pytest.raises(ValueError, match="4 values, not 8"):
        unpack(data, 8)


def test_instance_maps_have_the_best_masks_with_parts_over_wholes():
    masks = np.zeros((300, 20, 30), bool)
    masks[0] = True
    for k in range(1, 300):
        masks[k, (k - 1) // 15 % 20, 2 * ((k - 1) % 15)] = True
    scores = np.linspace(0, 1, 300)
    scores[0] = 1
    values = instance_map(Forest(encode_masks(masks), [-1] + [0] * 299, (20, 30), scores=scores))
    assert values.max() == MAX_INSTANCES and values[0, 1] == 1, "the whole, where no part is"
    assert len(np.unique(values)) == MAX_INSTANCES


def test_parents_are_found_by_key():
    box = np.zeros((8, 8), bool)
    box[2:6, 2:6] = True
    (mask,), (empty,) = encode_masks([box]), encode_masks([~box & box])
    photo = build_photo("a", (8, 8), [Entity(empty, 1), Entity(mask, 2, 1), Entity(mask, 3, 2, 0.5, "cat")])
    assert photo.forest.parents.tolist() == [-1, 0] and photo.forest.sources == ["", "cat"]
    assert photo.has_parents and photo.has_scores and photo.forest.scores.tolist() == [1, 0.5]
    with pytest.raises(InputError, match="cycle"):
        build_photo("a", (8, 8), [Entity(mask, 1, 2), Entity(mask, 2, 1)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "cvat",
            "<annotations><image name='a' width='4' height='4'><mask rle='3,4' left='0' top='0' width='4' height='4'/>",
        ),
        ("cvat", "<a/>"),
        (
            "cvat",
            "<annotations><image name='a' width='4' height='4'>"
            "<mask rle='3,1' left='2' top='3' width='4' height='1'/></image></annotations>",
        ),
        ("cvat", "<?xml version='1.0' encoding='no-such-one'?><annotations/>"),
        (
            "cvat",
            "<annotations><image name='a' width='1000000' height='1000000'>"
            "<box xtl='0' ytl='0' xbr='1000000' ybr='1000000'/></image></annotations>",
        ),
        ("labelstudio", "{}"),
        ("labelstudio", '[{"data": {"image": "a"}, "predictions": [{"result": [{"type": "brushlabels"}]}]}]'),
        ("labelme", '{"shapes": [], "imageHeight": "x"}'),
        ("labelme", "[]"),
        (
            "labelme",
            '{"imageHeight": 4, "imageWidth": 4, "imagePath": "a", "shapes": [{"shape_type": "rectangle", '
            '"points": [[0, 0], [2, 2]], "group_id": [1]}]}',
        ),
        (
            "labelme",
            '{"imageHeight": 4, "imageWidth": 4, "imagePath": "a", "shapes": [{"shape_type": "polygon", '
            '"points": [[0, 0], [2, 1000000000000], [2, 0]]}]}',
        ),
        ("labelstudio", '[{"data": {"image": "a"}, "predictions": 3}]'),
        (
            "labelstudio",
            '[{"data": {"image": "a"}, "predictions": [{"result": [{"type": "brushlabels", "original_height": 4, '
            '"original_width": 4}, {"type": "relation", "from_id": []}]}]}]',
        ),
        ("fiftyone", '{"samples": [{"filepath": "a"}]}'),
        (
            "fiftyone",
            '{"samples": [{"filepath": "a", "metadata": {"width": 4, "height": 4}, "entities": {"_cls": "Detections", '
            '"detections": [{"mask": {"$binary": {"base64": "AAAA"}}, "bounding_box": [0, 0, 1, 1]}]}}]}',
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, name, content):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InputError):
        format_module(name).read(path, Options())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_type_declarations_are_refused(tmp_path, encoding):
    path = tmp_path / "file"
    path.write_bytes("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>".encode(encoding))
    with pytest.raises(InputError, match="document type declaration"):
        format_module("cvat").read(path, Options())


@pytest.mark.parametrize("line", ["0 a b", "0 0.1 0.2 0.3", "x 0 0 1 1"])
def test_lines_of_yolo_that_cannot_be_used_are_refused(made, tmp_path, line):
    (tmp_path / "photo0.txt").write_text(line)
    with pytest.raises(InputError, match="photo0.txt', line 1"):
        format_module("yolo").read(tmp_path, Options(images=made[0]))


@pytest.mark.parametrize("content", ["names: {a: b}", "names:", "names: 3", "- a", "{"])
def test_class_names_of_yolo_that_cannot_be_used_are_refused(made, tmp_path, content):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(InputError, match="data.yaml"):
        format_module("yolo").read(tmp_path, Options(images=made[0]))


def test_boxes_of_others_become_masks(made, tmp_path):
    size = made[1][0].forest.image_size
    (tmp_path / "photo0.txt").write_text("3 0.5 0.5 0.25 0.5\n")
    first, _ = format_module("yolo").read(tmp_path, Options(images=made[0]))
    assert first.forest.sources == ["3"] and not first.has_scores
    assert first.forest.boxes[0].tolist() == [size[1] * 3 / 8, size[0] / 4, size[1] / 4, size[0] / 2]


def test_names_outside_the_folder_or_colliding(made, tmp_path):
    forest = made[1][0].forest
    for names, words in ((["../a.png"], "points outside"), (["a.png", "a.jpg"], "share a label file")):
        photos = [Photo(name, forest) for name in names]
        with pytest.raises(InputError, match=words):
            format_module("labelme").write(photos, tmp_path, Options())
    assert not list(tmp_path.iterdir())


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


def test_the_tool_prints_a_table(made, capsys):
    assert TOOL["main"](["--formats", "cvat"]) == 0
    assert (
        "| cvat | own | this package | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |"
        in capsys.readouterr().out
    )
