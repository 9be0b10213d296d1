"""Damaged label files in every tool: a documented exit code, no traceback, no crash, bounded time and memory."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from helpers.harness import load_tool, run_forked, settings, violation, warm_up
from helpers.mutations import odd_files
from PIL import Image

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

SIZE = (40, 50)
CONFIG = """
VERSION: 2
MODEL: {META_ARCHITECTURE: TinySegmenter, VIT: {WEIGHTS: random}}
INPUT: {FORMAT: RGB, IMAGE_SIZE: 32, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}
DATASETS:
  REGISTER: {%(name)s_scenes: [%(folder)s/odd.json, %(folder)s/images]}
  TRAIN: ("%(name)s_scenes",)
  TEST: ()
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 1, LR_SCHEDULER_NAME: WarmupPolyLR}
TEST: {VISUALIZE: 0}
SEED: 1
OUTPUT_DIR: %(folder)s/output
"""

# Case -> tool, its folder, and its command line; {odd} is the damaged file, {good} a good one.
COMMANDS = {
    "evaluate-truth": ("evaluate_json", "tools", "--gt {odd} --pred {good} --iou-type segm bbox"),
    "evaluate-predictions": (
        "evaluate_json",
        "tools",
        "--gt {good} --pred {odd} --iou-type segm bbox --output {dir}/metrics.json",
    ),
    "evaluate-results": ("evaluate_json", "tools", "--gt {good} --pred {odd}"),
    "evaluate-registered": (
        "evaluate_predictions",
        "tools",
        "--dataset '{name}: {odd}, {dir}/images' --pred {good} --output-dir {dir}/out",
    ),
    "inspect": ("inspect_labels", "tools", "--labels {odd} --output {dir}/inspected.json"),
    "draw": ("draw_forests", "tools", "--json {odd} --images {dir}/images --output {dir}/pictures"),
    "visualize": ("visualize_json", "tools", "--json {odd} --images {dir}/images --output {dir}/report.html"),
    "compare": (
        "visualize_json",
        "tools",
        "--json {good} --compare {odd} --images {dir}/images --output {dir}/report.html",
    ),
    "convert": ("prepare_coco", "datasets", "--annotations {odd} --no-images --output {dir}/converted.json"),
    "label": (
        "generate_pseudo_labels",
        "tools",
        "--images {odd} --image-root {dir}/images --output {dir}/labels.json --overwrite --workers 0 --device cpu "
        "EXPLORATION.FEATURES.NAME color_texture",
    ),
    "train": ("train_net", "tools", "--config-file {dir}/{name}.yaml --num-gpus 0"),
}
EXAMPLES_IN_A_TEST_RUN = {"label": 2, "train": 2}


def good_document() -> dict:
    """Two images with masks in all forms of COCO jsons; those of the first image have a hierarchy."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 4:36, 4:44] = True
    masks[1, 8:20, 8:20] = True
    masks[2, 10:14, 10:14] = True
    forest = Forest(encode_masks(masks), [-1, 0, 1], SIZE, scores=[0.9, 0.8, 0.4]).to_coco(1, 10)
    forest[1]["segmentation"] = [[8, 8, 20, 8, 20, 20, 8, 20]]
    plain = {"id": 20, "image_id": 2, "category_id": 1, "iscrowd": 0, "area": 200, "bbox": [5, 0, 5, 40], "score": 0.5}
    runs = {"size": list(SIZE), "counts": [200, 200, 1600]}
    crowd = {**plain, "id": 21, "iscrowd": 1, "segmentation": [[1.5, 1.5, 9.0, 1.5, 9.0, 9.5]]}
    return {
        "info": {},
        "images": [
            {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]},
            {"id": 2, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1], "coco_url": "http://x/val2017/b.png"},
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [*forest, {**plain, "segmentation": runs}, crowd],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / "images" / name)
    (folder / "good.json").write_text(json.dumps(good_document()))
    for name in ("warm", "odd"):
        (folder / f"{name}.yaml").write_text(CONFIG % {"folder": folder, "name": name})
    return folder


@pytest.fixture(scope="module")
def tools():
    return {}


def arguments_of(case, folder, odd, name="odd"):
    line = COMMANDS[case][2].format(odd=odd, good=folder / "good.json", dir=folder, name=name)
    quoted = line.split("'")
    return [*quoted[0].split(), *([quoted[1], *quoted[2].split()] if len(quoted) > 1 else [])]


def warm_tool(case, folder, tools):
    """The tool, warmed up by a run on a good file in this process."""
    name, where, _ = COMMANDS[case]
    if case == "train":  # late, so that forks of other cases do not have torch
        importlib.import_module("helpers.tiny_training")  # registers TinySegmenter
    if name not in tools:
        tools[name] = load_tool(name, where)
    odd = folder / "odd.json"
    odd.write_bytes((folder / "good.json").read_bytes())
    assert warm_up(tools[name], arguments_of(case, folder, odd, "warm")) == 0
    return tools[name]


@pytest.mark.parametrize("case", COMMANDS)
def test_damaged_label_files(case, folder, tools, tmp_path):
    tool = warm_tool(case, folder, tools)
    document = good_document()
    if case == "evaluate-results":
        document = document["annotations"]
    odd = folder / "odd.json"
    wrong: dict[str, Path] = {}  # violation -> an input that causes it
    codes: Counter = Counter()

    @settings(EXAMPLES_IN_A_TEST_RUN.get(case, 4))
    @hypothesis.given(odd_files(document))
    def check(data):
        odd.write_bytes(data)
        outcome = run_forked(tool, arguments_of(case, folder, odd), memory=1 << 30)
        codes[outcome.code] += 1
        found = violation(outcome)
        if found and found not in wrong:
            wrong[found] = tmp_path / f"{len(wrong)}.json"
            wrong[found].write_bytes(data)

    check()
    print(f"{case}: {codes.total()} examples, exit codes {dict(codes)}, {len(wrong)} kinds of violations")
    assert not wrong
