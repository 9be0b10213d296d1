"""The segment AUC, on handmade cases, and without the library that trainings need."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.tiny_pretraining import write_photos

from sohes_d2.errors import InputError
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.pretraining.dense_check import DenseCheck, cells_of_segments, image_auc, pair_auc


@pytest.mark.parametrize(
    ("positive", "negative", "auc"),
    [
        ([0.9, 0.5], [0.5, 0.1], 3.5 / 4),  # three wins and a tie
        ([1.0, 1.0], [0.0], 1.0),
        ([0.0], [1.0, 2.0, 3.0], 0.0),
        ([0.3, 0.3], [0.3], 0.5),
        ([5.0, 1.0, 3.0], [2.0, 4.0], 3 / 6),
    ],
)
def test_pair_auc_counts_wins(positive, negative, auc):
    assert pair_auc(np.array(positive), np.array(negative)) == pytest.approx(auc)


def test_a_cell_belongs_to_the_segment_that_covers_half_of_it():
    left = np.zeros((4, 4), bool)
    left[:, :2] = True
    half, less = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    half[0, :2] = True  # two of the four pixels of the first cell
    less[0, 0] = True
    owners = cells_of_segments([left, half, less], (2, 2))
    assert owners.tolist() == [[True, False, True, False], [True, False, False, False], [False] * 4]
    assert cells_of_segments([], (2, 2)).shape == (0, 4)


def unit(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None].astype(np.float32)


def test_auc_of_four_cells_by_hand():
    """Segment A has cells at 0 and 60 degrees, B two at 30: within A the cosine is 0.5, within B 1, across 0.866."""
    owners = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    features = unit(0, 60, 30, 30) * np.array([1, 9, 2, 3])[None, :, None]  # lengths do not matter
    auc, near_auc = image_auc(features, owners, 20, np.random.default_rng(0))
    assert auc == near_auc == pytest.approx(0.5)  # B's pair is above all pairs across, A's below
    perfect = image_auc(unit(0, 5, 90, 95), owners, 20, np.random.default_rng(0))
    assert perfect == (1.0, 1.0)
    alike = image_auc(unit(7, 7, 7, 7), owners, 20, np.random.default_rng(0))
    assert alike == pytest.approx((0.5, 0.5))


def test_nested_segments_count_as_different_outside_of_the_inner_one():
    """The inner segment (cells 0, 1) lies in the outer one (all four): only the inner one has cells outside it."""
    owners = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    assert image_auc(unit(0, 0, 80, 80), owners, 8, np.random.default_rng(0)) == (1.0, 1.0)
    assert image_auc(unit(0, 80, 0, 80), owners, 64, np.random.default_rng(0))[0] == pytest.approx(0.25, abs=0.1)


def test_no_auc_without_pairs():
    rng = np.random.default_rng(0)
    assert image_auc(unit(0, 1, 2, 3), np.ones((1, 4), bool), 8, rng) is None
    assert image_auc(unit(0, 1, 2, 3), np.eye(4, dtype=bool), 8, rng) is None
    assert image_auc(unit(0, 1, 2, 3), np.zeros((0, 4), bool), 8, rng) is None


def test_position_scores_high_unless_pairs_are_matched_by_distance():
    rows, cols = 24, 24
    y, x = np.mgrid[:rows, :cols] / 24
    features = np.stack([np.cos(y), np.sin(y), np.cos(x), np.sin(x)], axis=-1).astype(np.float32)
    label = (np.arange(cols) // 6)[None].repeat(rows, 0)  # four stripes
    owners = (label.reshape(1, -1) == np.arange(4)[:, None]).astype(bool)
    auc, near_auc = image_auc(features, owners, 400, np.random.default_rng(0))
    assert auc > 0.7
    assert near_auc < auc - 0.08


def test_check_of_a_json_with_a_broken_image(tmp_path):
    images, json_file = write_photos(tmp_path, 4)
    check = DenseCheck(str(json_file), str(images))
    extractor = ColorTextureExtractor(token_budget=192)
    score = check.score(extractor)
    assert score.images == 4 and not score.skipped
    assert score.auc > 0.85 and score.near_auc > 0.85  # flat colours
    assert check.score(extractor) == score  # the sampled pairs are the same
    (images / "02.png").write_bytes(b"no image")
    again = check.score(extractor)
    assert again.images == 3 and list(again.skipped) == ["02.png"]
    assert DenseCheck(str(json_file), str(images), max_images=2).score(extractor).images == 2  # 00 and 03


def test_nothing_to_score_is_nan_and_a_bad_file_an_error(tmp_path):
    images, json_file = write_photos(tmp_path, 1)
    content = json.loads(json_file.read_text())
    content["annotations"] = []
    json_file.write_text(json.dumps(content))
    score = DenseCheck(str(json_file), str(images)).score(ColorTextureExtractor(token_budget=48))
    assert np.isnan(score.auc) and score.images == 0
    assert score.skipped == {"00.png": "no two segments with two cells"}
    with pytest.raises(InputError, match="check the path"):
        DenseCheck(str(tmp_path / "none.json"), str(images))


WITHOUT_LIGHTLY = """
import sys
sys.modules["lightly"] = None
import sohes_d2, sohes_d2.pretraining, sohes_d2.pretraining.dense_check
try:
    import sohes_d2.pretraining.trainer
except ImportError as error:
    print(error)
"""


def test_only_trainings_need_the_library_and_name_the_remedy():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIGHTLY], capture_output=True, text=True, check=True)
    assert "needs the library lightly" in done.stdout and "pip install 'sohes_d2[pretrain]'" in done.stdout
    assert "pip install --no-deps 'lightly" in done.stdout
