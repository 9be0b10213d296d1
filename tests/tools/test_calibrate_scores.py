"""Fits of tools/calibrate_scores.py to generated scores with known probabilities, and a whole run."""

from __future__ import annotations

import calibrate_scores
import cv2
import numpy as np
import pytest

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks
from sohes_d2.structures.score_calibration import calibrated, check_knots


def generated(share, count=20000):
    """Raw scores, and whether each mask is found again, with probability ``share(score)``."""
    rng = np.random.default_rng(0)
    raw = rng.random(count)
    return raw, rng.random(count) < share(raw)


@pytest.mark.parametrize("share", [lambda raw: raw**3, lambda raw: 0.3 + 0 * raw, lambda raw: 0.9 * (raw > 0.5)])
def test_a_models_knots_give_the_share_found_again(share):
    raw, returned = generated(share)
    knots = calibrate_scores.isotonic_knots(raw, returned)
    check_knots(knots)
    found = calibrated(raw, knots)
    assert calibrate_scores.calibration_error(found, returned) < 0.04
    some = (raw > 0.1) & (raw < 0.95) & (np.abs(raw - 0.5) > 0.1)
    assert np.abs(found - share(raw))[some].max() < 0.08
    assert (np.diff(found[np.argsort(raw)]) > 0).all()


def test_knots_of_equal_scores():
    knots = calibrate_scores.isotonic_knots(np.full(100, 0.7), np.arange(100) < 40)
    check_knots(knots)
    assert calibrated(np.array([0.7]), knots)[0] == pytest.approx(0.4, abs=0.02)


def test_the_fit_of_phase_one_finds_the_curve_of_its_scores():
    raw, returned = generated(lambda raw: 0.3 * raw / (raw + 0.01) + 0.7 * raw**4 / (raw**4 + 0.5**4))
    floor, midpoint, slope = calibrate_scores.fit(raw, returned, 0.01)
    assert (floor, midpoint) == (pytest.approx(0.3, abs=0.03), pytest.approx(0.5, abs=0.02))
    assert slope == pytest.approx(4, abs=0.6)


def test_calibration_error_is_the_weighted_difference_of_tenths():
    scores = np.array([0.25, 0.25, 0.25, 0.25, 0.85])
    returned = np.array([True, False, False, False, False])
    assert calibrate_scores.calibration_error(scores, returned) == pytest.approx((4 * 0.0 + 0.85) / 5)


def bright_square(image):
    """Finds two entities: the bright pixels, with score 0.8, and the left half of the photo, with 0.4."""
    left = np.zeros(image.shape[:2], bool)
    left[:, : image.shape[1] // 2] = True
    masks = encode_masks(np.stack([image[..., 1] > 128, left]))
    return Forest.from_masks(masks, image.shape[:2], scores=np.array([0.8, 0.4]))


def test_masks_that_follow_the_photo_are_found_again_and_others_not(tmp_path, capsys, monkeypatch):
    image = np.full((60, 90, 3), 30, np.uint8)
    image[10:40, 15:45] = 220
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.roll(image, 8 * k, axis=1))
    monkeypatch.setattr(calibrate_scores, "model", lambda args: (bright_square, 0.0))
    assert calibrate_scores.main(["--images", str(tmp_path), "--photos", "3", "--model", "any", "--check"]) == 0
    text = capsys.readouterr().out
    assert "3 photos, 6 masks, 0.500 of them found again" in text
    assert "observed 1.000" in text and "observed 0.000" in text
    assert calibrate_scores.main(["--images", str(tmp_path), "--photos", "3", "--model", "any"]) == 0
    assert "TEST.SCORE_CALIBRATION [[0.0, 0.0]," in capsys.readouterr().out
    assert calibrate_scores.main(["--images", str(tmp_path / "none")]) != 0
