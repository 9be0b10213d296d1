"""Exported files give the model's outputs or are deleted, and the example decodes like the predictor."""

import ast
import importlib.util
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import run_onnx
import torch
from helpers.tiny_training import sohes_cfg, tiny_cfg
from PIL import Image
from pycocotools import mask as mask_util

from sohes_d2.cli.export_onnx import main as export_onnx
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.errors import InputError, SOHESError
from sohes_d2.inference import export
from sohes_d2.inference.export import (
    SegmenterGraph,
    export_segmenter,
    largest_differences,
)
from sohes_d2.inference.predictor import SOHESPredictor
from sohes_d2.modeling.deformable_attention import MSDeformAttn
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.modeling import build_model

REPOSITORY = Path(__file__).parents[2]
SIZE = (64, 96)
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime (pip install .[onnx])")


def write_model(folder, change=None):
    """Write a model's folder, with random weights scaled so that it predicts a hierarchy."""
    cfg = sohes_cfg(folder)
    # photos of 48 x 72 pixels are resized to SIZE
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = SIZE
    if change:
        change(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    head = model.sem_seg_head.predictor.ancestor_head
    with torch.no_grad():
        model.sem_seg_head.predictor.query_feat.weight.mul_(3)  # makes the masks differ
        if head is not None:
            head.bias.zero_()
            head.as_ancestor.weight.mul_(4)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(folder):
    return SOHESPredictor(folder, device="cpu")


@pytest.fixture(scope="module")
def program(predictor):
    """The model traced by torch.export, once per module, since this takes seconds."""
    return export.trace(SegmenterGraph(predictor.model).eval(), SIZE)


@pytest.fixture
def traced(monkeypatch, program):
    monkeypatch.setattr(export, "trace", lambda graph, size: program)


def photo(k=0, size=(48, 72)):
    return generate_scene(3, k, size)[0]


def same(found: Forest, expected: Forest) -> bool:
    return (
        [m["counts"] for m in found.masks] == [m["counts"] for m in expected.masks]
        and found.parents.tolist() == expected.parents.tolist()
        and np.allclose(found.scores, expected.scores, atol=1e-5)
    )


def decoded(model, image, channels="RGB", **changes):
    """The forest that the example decodes from the eager model's outputs."""
    graph = SegmenterGraph(model, channels)
    settings = {**json.loads(export.settings(graph)), **changes}
    pixels, fitted = run_onnx.fit(Image.fromarray(image), SIZE, settings["pixel_mean"])
    with torch.no_grad():
        logits, masks, *ancestors = (output[0].numpy() for output in graph(torch.from_numpy(pixels)))
    entities = run_onnx.find_entities(logits, masks, fitted, image.shape[:2], settings)
    parents = run_onnx.find_parents(entities, ancestors[0] if ancestors else None, settings)
    return Forest.from_coco(run_onnx.to_coco(entities, parents, image.shape[:2], 1, 1), image.shape[:2])


def test_the_example_decodes_like_the_predictor(predictor):
    expected = [predictor(photo(k)) for k in range(3)]
    assert all(same(decoded(predictor.model, photo(k)), expected[k]) for k in range(3))
    assert min(map(len, expected)) >= 4
    assert max(forest.depths().max() for forest in expected) >= 1


def test_the_example_decodes_deep_forests_like_the_predictor(predictor):
    """With random ancestor probabilities: the smallest ancestor is often not the most probable one."""
    rng = np.random.default_rng(0)
    settings = {"ancestor_threshold": 0.3, "theta_cover": 0.5, "max_child_area": 0.8, "theta_cover_alone": 0.8}
    deepest = 0
    for _ in range(10):
        masks = np.zeros((30, 24, 32), bool)
        for mask in masks:
            ys, xs = (np.sort(rng.choice(np.arange(0, side + 1, 4), 2, replace=False)) for side in mask.shape)
            mask[ys[0] : ys[1], xs[0] : xs[1]] = True
        entities = [
            run_onnx.Entity(mask[top:bottom, left:right], top, left, int(mask.sum()), 1.0, query)
            for query, mask in enumerate(masks)
            for top, bottom in [(int(mask.any(1).argmax()), int(24 - mask.any(1)[::-1].argmax()))]
            for left, right in [(int(mask.any(0).argmax()), int(32 - mask.any(0)[::-1].argmax()))]
        ]
        probabilities = rng.random((30, 30)).round(2)
        rles, size = encode_masks(masks), masks.shape[1:]
        expected = Forest.from_probabilities(rles, probabilities, size, 0.3, 0.5, 0.8)
        assert run_onnx.find_parents(entities, probabilities, settings).tolist() == expected.parents.tolist()
        deepest = max(deepest, expected.depths().max())
        expected = Forest.from_masks(rles, size, 0.8, 0.8)
        assert run_onnx.find_parents(entities, None, settings).tolist() == expected.parents.tolist()
    assert deepest >= 4


def test_the_example_drops_the_same_masks_as_the_predictor(tmp_path):
    def change(cfg):
        cfg.TEST.NMS_THRESHOLD, cfg.TEST.MIN_SCORE, cfg.TEST.DETECTIONS_PER_IMAGE = 0.6, 0.1, 9
        cfg.TEST.SCORE_CALIBRATION = [[0.0, 0.0], [0.4, 0.2], [1.0, 0.9]]

    strict = SOHESPredictor(write_model(tmp_path / "strict", change), device="cpu")
    expected = strict(photo())
    found = decoded(strict.model, photo())
    assert same(found, expected)
    everything = decoded(strict.model, photo(), nms_threshold=1.0, min_score=0.0, max_masks=100)
    assert 0 < len(found) < len(everything)


def test_a_model_without_ancestors_and_with_bgr(tmp_path):
    def change(cfg):
        cfg.MODEL.ANCESTOR_HEAD.ENABLED = False
        cfg.INPUT.FORMAT = "BGR"
        cfg.MODEL.PIXEL_MEAN = [103.0, 116.0, 124.0]
        cfg.TEST.THETA_COVER = 0.6

    other = SOHESPredictor(write_model(tmp_path / "bgr", change), device="cpu")
    assert same(decoded(other.model, photo(), "BGR"), other(photo()))
    assert (other(photo()).parents >= 0).any()
    graph = SegmenterGraph(other.model, "BGR")
    assert json.loads(export.settings(graph))["pixel_mean"] == [124.0, 116.0, 103.0]
    assert len(graph(torch.zeros(1, 3, *SIZE))) == 2


def test_outputs_equal_the_predictors(predictor):
    graph = SegmenterGraph(predictor.model)
    with torch.no_grad():
        logits, masks, ancestors = graph(torch.zeros(1, 3, *SIZE))
    assert (logits.shape, masks.shape, ancestors.shape) == ((1, 12, 2), (1, 12, 16, 24), (1, 12, 12))
    assert not ancestors[0].diagonal().any()
    assert ancestors.max() > 0.5 > ancestors.min() >= 0


def test_a_program_equals_the_model_without_this_package(predictor, program, tmp_path):
    layers = [layer for layer in predictor.model.modules() if isinstance(layer, MSDeformAttn)]
    assert {layer.sampling for layer in layers} == {"auto"}  # restored after tracing
    operators = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert operators <= {"aten", "<built-in function getitem>", "wrap_with_autocast"}  # no custom operators

    path = str(tmp_path / "model.pt2")
    graph = SegmenterGraph(predictor.model)
    export.write(program, path, export.settings(graph))
    differences = largest_differences(graph, export.load_runner(path), export.example_images(SIZE, [photo(1, SIZE)]))
    assert list(differences) == ["logits", "masks", "ancestors"]
    assert max(differences.values()) < 1e-4
    with zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith(export.METADATA))
        assert json.loads(file.read(name))["ancestor_threshold"] == 0.5


def test_a_file_that_differs_is_not_kept(folder, program, traced, tmp_path, monkeypatch, capsys):
    contents = iter((b"first", b"second", b"third", b"fourth"))
    monkeypatch.setattr(export, "write", lambda program, path, metadata: Path(path).write_bytes(next(contents)))
    monkeypatch.setattr(export, "load_runner", lambda path: program.module())
    other = SOHESPredictor(folder, device="cpu").model
    with torch.no_grad():
        other.sem_seg_head.predictor.class_embed.bias.add_(0.01)  # so that `program` no longer matches
    path = tmp_path / "new" / "model.pt2"
    with pytest.raises(SOHESError, match=r"not kept.*1\.0e-02 \(logits\)"):
        export_segmenter(other, [str(path)], SIZE)
    assert os.listdir(path.parent) == []
    export_segmenter(other, [str(path)], SIZE, tolerance=0.02)
    assert os.listdir(path.parent) == ["model.pt2"] and path.read_bytes() == b"second"

    arguments = [str(folder), "--size", "64", "96", "--output", str(path)]
    assert export_onnx([*arguments, "--tolerance", "-1"]) == 1
    assert "differs from the model" in capsys.readouterr().err
    assert os.listdir(path.parent) == ["model.pt2"] and path.read_bytes() == b"second"
    assert export_onnx(arguments) == 0
    assert path.read_bytes() == b"fourth"
    assert "MB, differs by at most" in capsys.readouterr().out


def test_nan_differences_are_infinite():
    def runner(*values):
        return lambda image: [torch.tensor(value) for value in values]

    images = [torch.zeros(1), torch.zeros(1)]
    assert largest_differences(runner([1.0, 2.0], [3.0]), runner([1.5, 2.0], [3.0]), images) == {
        "logits": 0.5,
        "masks": 0.0,
    }
    assert largest_differences(runner([1.0]), runner([float("nan")]), images)["logits"] == np.inf
    assert largest_differences(runner([1.0]), runner([1.0, 1.0]), images)["logits"] == np.inf
    assert largest_differences(runner([1.0], [1.0]), runner([1.0]), images)["masks"] == np.inf


@needs_onnx
def test_an_onnx_file_finds_the_predictors_forest(folder, predictor, traced, tmp_path, capsys):
    import onnx

    path = tmp_path / "model.onnx"
    Image.fromarray(photo(1)).save(tmp_path / "check.png")
    arguments = [str(folder), "--size", "64", "96", "--output", str(path), "--image", str(tmp_path / "check.png")]
    assert export_onnx(arguments) == 0
    assert "MB, differs by at most" in capsys.readouterr().out
    model = onnx.load(path)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    assert {opset.domain for opset in model.opset_import} == {""}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == {"image": [1, 3, 64, 96]}
    assert [v.name for v in model.graph.output] == ["logits", "masks", "ancestors"]

    photos = []
    for k in range(2):
        photos.append(str(tmp_path / f"{k}.png"))
        Image.fromarray(photo(k)).save(photos[k])
    out = tmp_path / "out"
    assert run_onnx.main(["--model", str(path), "--input", *photos, "--output", str(out), "--threads", "1"]) == 0
    labels = json.loads((out / "labels.json").read_text())
    assert [image["file_name"] for image in labels["images"]] == ["0.png", "1.png"]
    for k in range(2):
        annotations = [a for a in labels["annotations"] if a["image_id"] == k + 1]
        expected = predictor(photo(k))
        found = Forest.from_coco(annotations, (48, 72))
        assert len(found) == len(expected) and found.parents.tolist() == expected.parents.tolist()
        ious = mask_util.iou(found.masks, expected.masks, [0] * len(expected)).diagonal()
        assert ious.min() > 0.97  # rounding may flip single pixels
        assert np.asarray(Image.open(out / f"{k}.png")).shape == (48, 72, 3)
    assert len({a["id"] for a in labels["annotations"]}) == len(labels["annotations"])


def test_the_example_needs_neither_torch_nor_detectron2():
    tree = ast.parse((REPOSITORY / "tools" / "run_onnx.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime", "sohes_d2"}
    hierarchy = (REPOSITORY / "sohes_d2" / "structures" / "hierarchy.py").read_text()
    assert not re.search(
        r"^(?:import|from) (?!__future__|heapq|collections|dataclasses|numpy)", hierarchy, re.MULTILINE
    )


@pytest.mark.parametrize("size", [(16, 24), (37, 50), (9, 11), (16, 7)])
def test_the_example_resizes_like_torch(size):
    values = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(run_onnx.resize(values.numpy(), size), expected[0, 0].numpy(), atol=1e-5)


def test_the_example_pads_and_encodes():
    pixels, fitted = run_onnx.fit(Image.fromarray(photo(0, (40, 40))), SIZE, [1.0, 2.5, 3.0])
    assert fitted == (64, 64)
    assert pixels.shape == (1, 3, 64, 96) and pixels.dtype == np.float32
    assert (pixels[0, :, :, 64:] == np.array([1.0, 2.5, 3.0])[:, None, None]).all()

    mask = np.zeros((5, 7), bool)
    mask[0:3, 0:2] = mask[4, 6] = True
    whole = run_onnx.Entity(mask, 0, 0, 7, 1.0, 0)
    window = run_onnx.Entity(mask[:3, :2], 2, 3, 6, 1.0, 1)
    expected = np.zeros((5, 7), np.uint8)
    expected[2:5, 3:5] = 1
    for entity, wanted in ((whole, mask), (window, expected)):
        rle = {"size": [5, 7], "counts": run_onnx.run_lengths(entity, (5, 7))}
        assert (mask_util.decode(mask_util.frPyObjects(rle, 5, 7)) == wanted).all()
    assert run_onnx.overlap(whole, window) == (mask & (expected > 0)).sum() == 0
    assert run_onnx.overlap(whole, run_onnx.Entity(mask[:3, :2], 1, 1, 6, 1.0, 2)) == 2


def test_errors_are_explained(folder, predictor, tmp_path, monkeypatch, capsys):
    def error(*arguments, size=("64", "96"), output="a.pt2"):
        code = export_onnx([*map(str, arguments), "--size", *size, "--output", str(tmp_path / output)])
        assert code == 2 and os.listdir(tmp_path) == []
        return capsys.readouterr().err

    assert "multiples of 32, got 64 and 100" in error(folder, size=("64", "100"))
    assert "must end in .onnx or .pt2" in error(folder, output="a.pt")
    assert "is not a folder with a config.yaml" in error(tmp_path / "none")
    assert "does not exist" in error(folder, "--image", tmp_path / "none.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "onnxruntime; pip install 'sohes_d2[onnx]'" in error(folder, output="a.onnx")
    with pytest.raises(InputError, match="not TinySegmenter"):
        export_segmenter(build_model(tiny_cfg("")), [str(tmp_path / "a.pt2")], SIZE)
    predictor.model.train()
    try:
        with pytest.raises(InputError, match="evaluation mode"):
            export_segmenter(predictor.model, [str(tmp_path / "a.pt2")], SIZE)
    finally:
        predictor.model.eval()
