"""Synthetic scenes on disk: images match their forests, also in a folder with older files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import decode_masks

SIZE = (48, 64)


@pytest.fixture
def script(load_script):
    return load_script("prepare_synthetic")


@pytest.fixture
def write(script, tmp_path):
    """`write("--train", "2")`: run the script at a small size; returns the exit code."""

    def run(*arguments: str) -> int:
        size = [] if "--size" in arguments else ["--size", *map(str, SIZE)]
        return script.main(["--output", str(tmp_path), "--train", "0", "--val", "0", *size, *arguments])

    return run


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_and_forests_are_the_scenes(write, tmp_path, read_labels, capsys):
    assert write("--train", "2", "--val", "2", "--seed", "5") == 0
    assert names(tmp_path / "train") == ["scene_0000000.png", "scene_0000001.png"]
    assert names(tmp_path / "val") == ["scene_1000000.png", "scene_1000001.png"]
    assert names(tmp_path / "annotations") == ["train.json", "val.json"]
    for split, first in (("train", 0), ("val", 1_000_000)):
        labels = read_labels(tmp_path / "annotations" / f"{split}.json")
        assert labels["categories"] == [{"id": 1, "name": "entity", "supercategory": "entity"}]
        assert (labels["info"]["seed"], labels["info"]["size"]) == (5, list(SIZE))
        for k, record in enumerate(labels["images"]):
            image, forest = generate_scene(5, first + k, SIZE)
            with Image.open(tmp_path / split / record["file_name"]) as file:
                assert (np.asarray(file) == image).all()
            annotations = [a for a in labels["annotations"] if a["image_id"] == record["id"]]
            assert (np.stack([a["mask"] for a in annotations]) == decode_masks(forest.masks)).all()
            assert (Forest.from_coco(annotations, SIZE).parents == forest.parents).all()
            assert [a["depth"] for a in annotations] == forest.depths().tolist()
    assert "train.json: 2 images" in capsys.readouterr().out


def test_larger_splits_start_with_the_same_scenes_and_smaller_ones_delete_the_rest(write, tmp_path):
    assert write("--train", "3") == 0
    first = (tmp_path / "train" / "scene_0000000.png").read_bytes()
    (tmp_path / "train" / "mine.png").touch()
    assert write("--train", "1") == 0
    assert names(tmp_path / "train") == ["mine.png", "scene_0000000.png"]
    assert (tmp_path / "train" / "scene_0000000.png").read_bytes() == first
    assert not (tmp_path / "val").exists()


def test_a_stopped_run_leaves_no_mismatched_json(script, write, tmp_path, monkeypatch, read_labels):
    assert write("--train", "3") == 0
    complete = (tmp_path / "annotations" / "train.json").read_bytes()

    def stop(seed, index, size):
        if index == 2:
            raise KeyboardInterrupt
        return generate_scene(seed, index, size)

    with monkeypatch.context() as patch:
        patch.setattr(script, "generate_scene", stop)
        assert write("--train", "3", "--seed", "1") == 130
    assert not (tmp_path / "annotations" / "train.json").exists()
    assert write("--train", "3") == 0
    assert (tmp_path / "annotations" / "train.json").read_bytes() == complete
    assert names(tmp_path / "annotations") == ["train.json"]
    with Image.open(tmp_path / "train" / "scene_0000000.png") as file:
        assert (np.asarray(file) == generate_scene(0, 0, SIZE)[0]).all()


def test_invalid_settings_do_not_delete_files(write, tmp_path, capsys):
    assert write("--val", "1") == 0
    before = (tmp_path / "annotations" / "val.json").read_bytes()
    assert write("--val", "1", "--size", "16", "64") == 2
    assert "at least 32 x 32" in capsys.readouterr().err
    assert (tmp_path / "annotations" / "val.json").read_bytes() == before
    with pytest.raises(SystemExit):
        write("--val", "-1")


def test_the_registered_data_set_finds_them(script, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    from sohes_d2.data.benchmarks.builtin import BUILTIN
    from sohes_d2.data.registration import load_entities

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert script.main(["--train", "0", "--val", "1", "--size", *map(str, SIZE)]) == 0
    row = BUILTIN["entities_synthetic_val"]
    (record,) = load_entities(str(tmp_path / row.labels), str(tmp_path / row.images))
    assert row.has_parents and not row.per_image
    with Image.open(record["file_name"]) as file:
        assert file.size == (SIZE[1], SIZE[0])
    assert {a["depth"] for a in record["annotations"]} >= {0, 1}
