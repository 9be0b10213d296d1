"""The entity benchmark: recall of a selection and of the best by score, remaining overlap, shape of forests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks import benchmark_entities as tool

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

SIZE = (40, 60)


def forest(*boxes, scores):
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    return Forest.from_masks(encode_masks(masks), SIZE, scores=scores)


def write(path, one):
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    path.write_text(json.dumps({"images": [image], "annotations": one.to_coco(1), "categories": [{"id": 1}]}))
    return str(path)


def test_numbers(tmp_path, capsys):
    # two objects side by side; one has two outlines, which have the best scores, and a part
    truth = forest((0, 0, 40, 30), (0, 30, 40, 60), (5, 5, 15, 15), scores=[1, 1, 1])
    found = forest((0, 0, 40, 30), (0, 0, 40, 26), (0, 30, 40, 60), (5, 5, 15, 15), scores=[0.9, 0.8, 0.7, 0.1])
    gt, pred = write(tmp_path / "gt.json", truth), write(tmp_path / "pred.json", found)
    output = tmp_path / "out.json"
    assert tool.main(["--gt", gt, "--pred", pred, "--entities", "2", "--output", str(output)]) == 0
    numbers = json.loads(output.read_text())
    by_score, selected = numbers["selection"]["by score 2"], numbers["selection"]["selected 2"]
    assert by_score["AR"] == pytest.approx(100 / 3) and by_score["overlap"] == 1
    assert selected["AR"] == pytest.approx(200 / 3) and selected["overlap"] == 0 and selected["masks"] == 2
    before, after = numbers["forests"]["as found"], numbers["forests"]["collapsed"]
    assert (before["masks"], before["deepest, median"], before["only children over 80 %"]) == (4, 2, 1)
    assert (after["masks"], after["deepest, median"], after["only children over 80 %"]) == (3, 1, 0)
    assert before["parents with one child, %"] == 100
    assert (before["parent_F1-50"], after["parent_F1-50"]) == (0, 100)
    assert "AR@2 selected" in capsys.readouterr().out and numbers["images"] == 1


def test_errors(tmp_path, capsys):
    truth = forest((0, 0, 40, 30), scores=[1])
    gt = write(tmp_path / "gt.json", truth)
    empty = write(tmp_path / "empty.json", truth.subset([]))
    assert tool.main(["--gt", gt, "--pred", empty]) == 2
    assert "has no masks" in capsys.readouterr().err
    assert tool.main(["--gt", str(tmp_path / "none.json"), "--pred", empty]) == 2
    with pytest.raises(SystemExit):
        tool.main(["--gt", gt, "--pred", empty, "--entities", "0"])
