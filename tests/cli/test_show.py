"""`sohes show`: output and exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sohes_d2.cli import show as tool
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

SIZE = (40, 50)


@pytest.fixture
def files(tmp_path):
    """Two photos, their labels, and the same labels with other ids, as from another tool."""
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 5:35, 5:35] = True
    masks[1, 10:20, 10:20] = True
    content = {"images": [], "annotations": []}
    for image_id, name in ((1, "a.png"), (2, "sub/b.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 120, 60)).save(path)
        content["images"].append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        forest = Forest(encode_masks(masks), [-1, 0], SIZE, scores=[0.9, 0.4])
        content["annotations"] += forest.to_coco(image_id, 10 * image_id)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    content["images"][0]["file_name"] = "c.png"
    (tmp_path / "peer.json").write_text(json.dumps(content))
    (tmp_path / "metrics.json").write_text('{"segm/AR@1000": 40.5}')
    return tmp_path


def run(files, *more, labels="labels.json", images="images"):
    paths = ["--json", files / labels, "--images", files / images, "--output", files / "out" / "report.html"]
    return tool.main([str(argument) for argument in (*paths, *more)])


def test_one_file(files, capsys):
    assert run(files) == 0
    output = capsys.readouterr().out
    assert "2 images, 4 masks of" in output
    text = (files / "out" / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "<title>labels.json</title>" in text


def test_options_reach_the_page(files, capsys):
    more = ("--max-images", 1, "--score-threshold", 0.5, "--max-side", 64, "--title", "Mine", "--max-masks", 7)
    more += ("--entities", 4)
    assert run(files, *more, "--metrics", files / "metrics.json") == 0
    assert "1 images, 1 masks of" in capsys.readouterr().out
    text = (files / "out" / "report.html").read_text()
    assert "<title>Mine</title>" in text and '"left":1,"maxMasks":7,' in text
    assert '"entityCounts":[1,2,3,4,5,10,15,20,30,50],"entities":4,"scoreThreshold":0.5' in text
    assert '["AR@1000",40.5]' in text


def test_two_files(files, capsys):
    assert run(files, "--compare", files / "peer.json") == 0
    output = capsys.readouterr().out
    assert "2 masks matched; 1 images are not in" in output and "2 masks of" in output


def test_missing_and_refused_photos_give_code_3_and_reasons(files, capsys):
    content = json.loads((files / "labels.json").read_text())
    content["images"][0]["file_name"] = "gone.png"
    content["images"][1]["file_name"] = "../images/a.png"
    (files / "odd.json").write_text(json.dumps(content))
    assert run(files, labels="odd.json") == 3
    captured = capsys.readouterr()
    assert "the file does not exist: 'gone.png'" in captured.err
    assert "'../images/a.png' points outside the images folder" in captured.err
    assert "2 photos are shown as missing, reasons above" in captured.err
    assert "2 images, 4 masks" in captured.out and (files / "out" / "report.html").exists()


def test_broken_masks_give_code_3(files, capsys):
    content = json.loads((files / "labels.json").read_text())
    content["annotations"][1]["segmentation"]["counts"] = "zz"
    content["annotations"].append({"image_id": 99})
    (files / "odd.json").write_text(json.dumps(content))
    assert run(files, labels="odd.json") == 3
    captured = capsys.readouterr()
    assert "annotation 11: counts" in captured.err and "1 problems, reasons above" in captured.err
    assert "1 records are invalid (1 x no such image)" in captured.err


@pytest.mark.parametrize(
    "content, message",
    [("{", "is not valid json"), ("[]", "is a result list"), ('{"images": 3}', "is not a list")],
)
def test_files_that_cannot_be_used_give_code_2(files, capsys, content, message):
    (files / "odd.json").write_text(content)
    assert run(files, labels="odd.json") == 2
    assert message in capsys.readouterr().err
    assert not (files / "out" / "report.html").exists()


@pytest.mark.parametrize(
    "more, images, message",
    [
        (("--max-side", 10), "images", "--max-side: must be at least 64"),
        (("--max-images", -1), "images", "--max-images: must be at least 0, got -1"),
        (("--min-score", 1.5), "images", "must be from 0 to 1"),
        ((), "nowhere", "is neither a folder nor a file"),
    ],
)
def test_arguments_that_cannot_be_used_give_code_2(files, capsys, more, images, message):
    with pytest.raises(SystemExit) as stop:
        run(files, *more, images=images)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_at_the_output_path_gives_code_2(files, capsys):
    assert run(files, "--output", ".") == 2
    assert "is a folder; name a file" in capsys.readouterr().err
