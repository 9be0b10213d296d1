"""Command lines of phase 1: labeling a folder, exit codes, messages, merging shards."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sohes_d2.cli.label import main as generate
from sohes_d2.cli.merge import main as merge
from sohes_d2.structures.forest import Forest


@pytest.fixture
def photos(tmp_path):
    """Three photos of a box with a stripe on a plain background, one of them in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "sub folder").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b.png", "sub folder/ü.png"]):
        image = np.full((64, 80 + 8 * k, 3), (60, 90, 160), np.uint8)
        image[16:56, 8:48] = (200, 60, 40)
        image[16:26, 8:48] = (240, 220, 60)
        noise = np.random.default_rng(k).integers(-4, 5, image.shape)
        Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(folder / name)
    return folder


def label(photos, output, *arguments, keys=()):
    command = ["--images", str(photos), "--output", str(output), "--device", "cpu", *arguments]
    return generate([*command, "EXPLORATION.FEATURES.NAME", "color_texture", *keys])


def test_a_folder_is_labeled_to_one_coco_file(photos, tmp_path, capsys):
    assert label(photos, tmp_path / "labels.json", "--workers", "0", "--refiner", "guided") == 0
    assert "3 images" in capsys.readouterr().out
    content = json.loads((tmp_path / "labels.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert names == {1: "a.png", 2: "b.png", 3: "sub folder/ü.png"}
    ids = [a["id"] for a in content["annotations"]]
    assert len(set(ids)) == len(ids) > 0
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        forest = Forest.from_coco(mine, (image["height"], image["width"]))
        forest.check()
        assert [a["depth"] for a in mine] == forest.depths().tolist()
    assert json.loads((tmp_path / "errors.json").read_text()) == []
    assert json.loads((tmp_path / "summary.json").read_text())["masks"] == len(ids)


def test_workers_jobs_and_merging_give_the_same_bytes(photos, tmp_path):
    assert label(photos, tmp_path / "one" / "labels.json", "--workers", "2") == 0
    for job in ("1/2", "0/2"):
        assert label(photos, tmp_path / "jobs", "--workers", "0", "--shard", job) == 0
    assert merge([str(tmp_path / "jobs"), str(tmp_path / "merged" / "labels.json")]) == 0
    expected = (tmp_path / "one" / "labels.json").read_bytes()
    assert (tmp_path / "merged" / "labels.json").read_bytes() == expected
    index = (tmp_path / "merged" / "labels.index.npz").read_bytes()
    assert index == (tmp_path / "one" / "labels.index.npz").read_bytes()
    assert set(json.loads((tmp_path / "merged" / "summary.json").read_text())["jobs"]) == {"0-of-2", "1-of-2"}
    assert merge([str(tmp_path / "jobs"), str(tmp_path / "merged" / "labels.json")]) == 2
    (tmp_path / "jobs" / "shard_00001.json").unlink()
    assert merge([str(tmp_path / "jobs"), str(tmp_path / "again.json")]) == 2
    assert merge([str(tmp_path / "jobs"), str(tmp_path / "again.json"), "--allow-incomplete"]) == 0


def test_selected_entities_of_a_single_photo(photos, tmp_path, capsys):
    """Only selected entities are written, for any number of workers; --resume needs the same selection."""
    photo, few = photos / "a.png", ("--entities", "2", "--max-depth", "1")
    assert label(photo, tmp_path / "all.json", "--workers", "0") == 0
    for workers in ("0", "1"):
        assert label(photo, tmp_path / f"{workers}.json", "--workers", workers, *few) == 0
    everything, one, other = (json.loads((tmp_path / f"{file}.json").read_text()) for file in ("all", "0", "1"))
    assert one == other and [image["file_name"] for image in one["images"]] == ["a.png"]
    depths = [annotation["depth"] for annotation in one["annotations"]]
    assert 1 <= depths.count(0) <= 2 and max(depths) <= 1 and len(depths) < len(everything["annotations"])
    masks = {annotation["segmentation"]["counts"] for annotation in everything["annotations"]}
    assert {annotation["segmentation"]["counts"] for annotation in one["annotations"]} <= masks
    assert one["info"]["config"]["selection"]["entities"] == 2 and "selection" not in everything["info"]["config"]
    assert label(photo, tmp_path / "0.json", "--workers", "0", "--resume", "--entities", "3") == 2
    assert "another configuration" in capsys.readouterr().err


def test_exit_codes_of_skipped_files_and_refused_resumes(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"")
    assert label(photos, tmp_path / "out", "--workers", "0") == 3
    errors = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert [(e["file_name"], e["reason"]) for e in errors] == [("broken.jpg", "the file is empty")]
    assert label(photos, tmp_path / "out", "--workers", "0", "--resume") == 3
    assert label(photos, tmp_path / "out", "--workers", "0") == 2
    assert "--resume" in capsys.readouterr().err
    assert label(photos, tmp_path / "out", "--workers", "0", "--resume", "--refiner", "guided") == 2
    message = capsys.readouterr().err
    assert "another configuration" in message and '"guided"' in message and '"none"' in message


def test_unusual_files_are_labeled_in_detectron2s_orientation_or_listed(tmp_path):
    from detectron2.data.detection_utils import read_image

    folder = tmp_path / "odd"
    folder.mkdir()
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[10:30, 10:40] = (220, 40, 90)
    rgb, grey = Image.fromarray(photo), Image.fromarray(photo[:, :, 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    grey.save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(photo[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(photo[:1, :1]).save(folder / "one.png")
    Image.fromarray(np.tile(photo, (2, 100, 1))[:50, :6000]).save(folder / "long.png")
    (folder / "cut.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("text")
    assert label(folder, tmp_path / "labels.json", "--workers", "0") == 3
    content = json.loads((tmp_path / "labels.json").read_text())
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    names = ["cmyk.jpg", "deep.png", "grey.png", "long.png", "one.png", "palette.png", "turned.jpg"]
    assert list(sizes) == names
    for name, size in sizes.items():
        assert size == read_image(str(folder / name), format="RGB").shape[:2]
    assert sizes["turned.jpg"] == (60, 40)
    skipped = json.loads((tmp_path / "errors.json").read_text())
    assert [record["file_name"] for record in skipped] == ["cut.jpg", "empty.png", "text.jpg"]
    assert all(record["step"] == "read" and record["reason"] for record in skipped)
    by_id = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        assert tuple(annotation["segmentation"]["size"]) == sizes[by_id[annotation["image_id"]]]


def test_usage_errors(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = ["--output", str(tmp_path / "out")]
    images = ["--images", str(photos)]
    (tmp_path / "bad.yaml").write_text("EXPLORATION:\n  NO_SUCH_KEY: 1\n")
    cases = [
        ([*images], "--output is missing"),
        ([*images, *output, "--shard", "3"], "--shard is I/N"),
        ([*images, *output, "--shard", "3/3"], "0 <= I < N"),
        ([*images, *output, "--workers", "-1"], "--workers"),
        (["--images", str(tmp_path / "nowhere"), *output], "does not exist"),
        ([*images, *output, "EXPLORATION.NO_SUCH_KEY", "1"], "EXPLORATION.NO_SUCH_KEY"),
        ([*images, *output, "EXPLORATION.THETA_MERGE"], "KEY VALUE pairs"),
        ([*images, *output, "EXPLORATION.HIERARCHY.THETA_COVER", "high"], "THETA_COVER"),
        ([*images, *output, "--config-file", str(tmp_path / "bad.yaml")], "NO_SUCH_KEY"),
        ([*images, *output, "--config-file", str(tmp_path / "none.yaml")], "none.yaml"),
        ([*images, *output, "--device", "cuda"], "--device cpu"),
        ([*images, "--output", str(tmp_path / "x.json"), "--shard", "0/2"], "sohes merge"),
        ([*images, *output, "--refiner", "no_such_refiner"], "no_such_refiner"),
    ]
    for arguments, message in cases:
        try:
            code = generate(arguments)
        except SystemExit as stop:
            code = stop.code
        assert code == 2, arguments
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
