"""`sohes demo`: shows usable photos, lists the others, and writes only to its folder."""

import json

import numpy as np
import pytest
import torch
from helpers.forest_checks import check_coverage
from helpers.tiny_training import sohes_cfg
from PIL import Image

from sohes_d2.cli import demo as tool
from sohes_d2.data.sources import read_inputs
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.errors import InputError
from sohes_d2.inference import gallery as demo
from sohes_d2.inference.gallery import DemoOptions, run_demo
from sohes_d2.inference.predictor import SOHESPredictor
from sohes_d2.labels.index import is_label_file
from sohes_d2.labels.shards import ShardedDataset
from sohes_d2.structures.forest import Forest

from detectron2.modeling import build_model

EVIL = "<img src=x onerror=alert(1)>.png"
FAST = ["EXPLORATION.FEATURES.NAME", "color_texture", "EXPLORATION.LOCAL_RECLUSTERING.ENABLED", "False"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos, one of them in a sub-folder under a name that contains HTML, and a broken file."""
    folder = tmp_path_factory.mktemp("demo") / "photos"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(["a.png", f"sub/{EVIL}"]):
        Image.fromarray(generate_scene(0, k, (96, 128))[0]).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nonsense")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo_model")
    cfg = sohes_cfg(folder)
    torch.manual_seed(0)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def chain_forest(image):
    """A chain of four nested masks with decreasing scores."""
    from sohes_d2.structures.masks import encode_masks

    height, width = image.shape[:2]
    masks = np.zeros((4, height, width), bool)
    for k, mask in enumerate(masks):
        mask[4 * k : height // 2 - 4 * k, 4 * k : width // 2 - 4 * k] = True
    return Forest(encode_masks(masks), [-1, 0, 1, 2], (height, width), scores=[0.9, 0.8, 0.7, 0.6])


def labels_of(folder):
    content = json.loads((folder / "labels.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return content, names


def test_without_weights_phase_1_is_shown(photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--input", str(photos), "--output", str(output), "--width", "300", "--device", "cpu"]
    assert tool.main([*arguments, "--max-masks", "12", *FAST]) == 3
    said = capsys.readouterr()
    assert "phase 1 with color_texture features" in said.out and "open " + str(output / "report.html") in said.out
    assert "skipped broken.jpg: " in said.err and "1 photos skipped" in said.err

    content, names = labels_of(output)
    assert names == {1: "a.png", 3: f"sub/{EVIL}"}
    assert [(s["id"], s["file_name"]) for s in content["skipped"]] == [(2, "broken.jpg")]
    assert content["info"]["model"] == "phase 1" and content["info"]["refiner"]["name"]
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        forest = Forest.from_coco(mine, (96, 128))
        check_coverage(forest)
        assert len(forest) > 3 and mine[0]["id"] == image["id"] * 10_000 + 1
    assert is_label_file(str(output / "labels.json"))
    assert len(ShardedDataset(str(output / "labels.json"))) == 2

    pictures = sorted(path.name for path in (output / "pictures").iterdir())
    for stem in ("a", "sub_img_src_x_onerror_alert_1"):
        assert {f"{stem}_{kind}.jpg" for kind in ("forest", "depth0", "strips", "tree")} <= set(pictures)
    assert {path.name for path in output.iterdir()} == {"labels.json", "pictures", "report.html"}
    with Image.open(output / "pictures" / "a_depth0.jpg") as picture:
        assert picture.size == (300, 225)
    page = (output / "report.html").read_text()
    assert "<img src=x" not in page


def test_a_model_is_loaded_from_folder_or_file(photos, model, tmp_path, capsys):
    expected = SOHESPredictor(model, device="cpu")(photos / "a.png")
    ways = {
        "folder": ["--weights", str(model)],
        "file": ["--weights", str(model / "model_final.pth")],
        "config": ["--weights", str(model / "model_final.pth"), "--config-file", str(model / "config.yaml")],
    }
    for name, way in ways.items():
        output = tmp_path / name
        arguments = ["--input", str(photos / "a.png"), "--output", str(output), "--width", "300", "--device", "cpu"]
        assert tool.main([*arguments, *way]) == 0
        assert "by the model model_final.pth on cpu" in capsys.readouterr().out
        content, _ = labels_of(output)
        found = Forest.from_coco(content["annotations"], (96, 128))
        assert [m["counts"] for m in found.masks] == [m["counts"] for m in expected.masks]
        assert found.parents.tolist() == expected.parents.tolist()
        assert content["info"]["weights"] == "model_final.pth"
    few = [*arguments, *way, "TEST.DETECTIONS_PER_IMAGE", "2"]
    assert tool.main(few) == 0
    assert len(labels_of(output)[0]["annotations"]) <= 2


def test_thresholds_act_on_json_and_pictures(photos, tmp_path):
    images = read_inputs([str(photos / "a.png")])

    def find(pixels):
        return [chain_forest(image) for image in pixels]

    def run(**options):
        report = run_demo(images, find, str(tmp_path), DemoOptions(width=300, **options))
        kinds = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        content, _ = labels_of(tmp_path)
        return report.forests["a.png"], kinds, [a["depth"] for a in content["annotations"]]

    counts, kinds, depths = run()
    assert counts == [1, 1, 1, 1] and depths == [0, 1, 2, 3] and "a_depth3.jpg" in kinds
    counts, kinds, depths = run(max_depth=1)
    assert counts == [1, 1] and depths == [0, 1]
    assert kinds == ["a_depth0.jpg", "a_depth1.jpg", "a_forest.jpg", "a_strips.jpg", "a_tree.jpg"]  # no depth above 1
    assert run(score_threshold=0.75)[0] == [1, 1]
    counts, kinds, depths = run(max_area=0.2)  # the whole is in the json, but not drawn
    assert depths == [0, 1, 2, 3] and "a_depth3.jpg" not in kinds
    counts, kinds, depths = run(score_threshold=1.0)
    assert counts == [] and depths == [] and "a_depth0.jpg" in kinds


def test_a_failing_photo_does_not_affect_its_batch(photos, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.full((32, 32 + k, 3), 90, np.uint8)).save(folder / f"{k}.png")
    calls = []

    def find(pixels):
        calls.append(len(pixels))
        if any(image.shape[1] == 33 for image in pixels):
            raise MemoryError("too large")
        return [chain_forest(image) for image in pixels]

    report = run_demo(read_inputs([str(folder)]), find, str(tmp_path / "out"), DemoOptions(width=300, batch_size=3))
    assert list(report.forests) == ["0.png", "2.png"] and calls == [3, 1, 1, 1]
    assert report.skipped == [{"id": 2, "file_name": "1.png", "reason": "MemoryError: too large"}]

    monkeypatch.setattr(demo, "write_label_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    before = (tmp_path / "out" / "labels.json").read_bytes()
    with pytest.raises(OSError, match="disk full"):
        run_demo(read_inputs([str(folder)]), find, str(tmp_path / "out"), DemoOptions(width=300))
    assert (tmp_path / "out" / "labels.json").read_bytes() == before


def test_inputs_are_files_folders_and_patterns(photos, tmp_path, monkeypatch):
    assert read_inputs([str(photos)]).file_names == ["a.png", "broken.jpg", f"sub/{EVIL}"]
    mixed = read_inputs([str(photos / "sub"), str(photos / "*.png"), str(photos / "a.png")])
    assert mixed.root == str(photos) and mixed.file_names == [f"sub/{EVIL}", "a.png"]
    assert list(mixed.image_ids) == [1, 2]
    assert read_inputs([str(photos / "**" / "*.png")]).file_names == ["a.png", f"sub/{EVIL}"]
    one = read_inputs([str(photos / "sub" / EVIL)])
    assert (one.root, one.file_names) == (str(photos / "sub"), [EVIL])
    bracket = tmp_path / "[x].png"  # an existing file takes precedence over a pattern
    bracket.write_bytes(b"")
    assert read_inputs([str(bracket)]).file_names == ["[x].png"]
    monkeypatch.chdir(photos / "sub")
    assert read_inputs(["../a.png", "."]).file_names == ["a.png", f"sub/{EVIL}"]  # names have no ".."
    for wrong, message in (("nowhere.jpg", "does not exist"), ("*.gif", "no file matches"), ("../s?b", "only folders")):
        with pytest.raises(InputError, match=message):
            read_inputs([wrong])


def test_errors_are_reported_in_one_line(photos, model, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    photo = ["--input", str(photos / "a.png")]
    (tmp_path / "alone.pth").write_bytes((model / "model_final.pth").read_bytes())
    (tmp_path / "empty").mkdir()
    cases = [
        (["--input", "nowhere.jpg", *output], "does not exist"),
        (["--input", str(tmp_path / "empty"), *output], "no image in the folder"),
        ([*photo, *output, "--weights", str(tmp_path / "alone.pth")], "--config-file is missing"),
        ([*photo, *output, "--weights", str(tmp_path / "empty")], "has no config.yaml"),
        ([*photo, *output, "--weights", "none.pth", "--config-file", str(model / "config.yaml")], "does not exist"),
        ([*photo, *output, "--config-file", "none.yaml"], "none.yaml' does not exist"),
        ([*photo, *output, "--device", "gpu", *FAST], "not known to torch"),
        ([*photo, *output, "--score-threshold", "2"], "--min-score/--score-threshold: must be from 0 to 1"),
        ([*photo, *output, "--width", "100"], "--width: must be at least 240"),
        ([*photo, *output, "--max-depth", "-1"], "--max-depth: must be at least 0"),
        ([*photo, *output, "EXPLORATION.NO_SUCH_KEY", "1"], "EXPLORATION.NO_SUCH_KEY"),
        ([*photo, "--output", str(photos / "a.png"), *FAST], "a.png"),
    ]
    for arguments, message in cases:
        try:
            code = tool.main(arguments)
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and message in error and "Traceback" not in error, (arguments, error)


def test_a_threshold_above_all_scores_is_reported(photos, tmp_path, capsys):
    arguments = ["--input", str(photos / "a.png"), "--output", str(tmp_path), "--width", "300"]
    assert tool.main([*arguments, "--score-threshold", "1", *FAST]) == 0
    assert "no mask has a score of 1.0 or more: the best is 0." in capsys.readouterr().err
