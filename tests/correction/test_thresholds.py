"""Score thresholds: dynamic, fixed, top k."""

from __future__ import annotations

import pytest
import torch

from sohes_d2 import add_sohes_config
from sohes_d2.correction.thresholds import THRESHOLD_REGISTRY, Threshold, build_threshold, dynamic, fixed, top_k

from detectron2.config import get_cfg


def config(**options):
    cfg = get_cfg()
    add_sohes_config(cfg)
    for name, value in options.items():
        setattr(cfg.CORRECTION.THRESHOLD, name, value)
    return cfg


def test_the_curve_rises_with_the_logarithm_of_the_area():
    areas = torch.tensor([0.0, 1e-5, 0.001, 0.01, 0.1, 1.0, 0.001 * 10**0.5])
    expected = [0.3, 0.3, 0.3, 0.5, 0.7, 0.7, 0.4]
    assert dynamic().tau(areas).tolist() == pytest.approx(expected, abs=1e-6)
    # other ends; the curve may also decrease
    other = dynamic(tau_small=0.8, tau_large=0.2, area_small=0.01, area_large=0.16)
    assert other.tau(torch.tensor([0.01, 0.04, 0.16])).tolist() == pytest.approx([0.8, 0.5, 0.2], abs=1e-6)
    assert other.least_score == 0.2


def test_small_masks_pass_with_scores_at_which_large_ones_do_not():
    areas = torch.tensor([0.0005, 0.0005, 0.01, 0.01, 0.2, 0.2])
    scores = torch.tensor([0.29, 0.31, 0.49, 0.51, 0.69, 0.71])
    assert dynamic()(areas, scores).tolist() == [False, True] * 3
    assert fixed(tau=0.5)(areas, scores).tolist() == [False, False, False, True, True, True]
    # a score that equals the threshold passes
    assert fixed(tau=0.5)(torch.tensor([0.1]), torch.tensor([0.5])).all()
    assert dynamic(tau_small=0.25, tau_large=0.75)(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.75])).all()


def test_top_k_keeps_the_best_scores():
    scores = torch.tensor([0.2, 0.9, 0.5, 0.9, 0.5])
    areas = torch.full_like(scores, 0.1)
    assert top_k(k=3)(areas, scores).tolist() == [False, True, True, True, False], "of equals, the first"
    assert top_k(k=9)(areas, scores).all()


@pytest.mark.parametrize("threshold", [dynamic(), fixed(tau=0.4), top_k(k=2)])
def test_invalid_settings_are_refused(threshold):
    below = torch.full((3,), threshold.least_score) - 1e-4
    if threshold.least_score:
        assert not threshold(torch.tensor([1e-4, 0.02, 0.5]), below).any()
    empty = threshold(torch.zeros(0), torch.zeros(0))
    assert empty.shape == (0,) and empty.dtype == torch.bool


def test_config_names_them():
    assert isinstance(build_threshold(config()), dynamic)
    areas = torch.tensor([0.002, 0.02])
    curve = build_threshold(config(TAU_SMALL=0.1, TAU_LARGE=0.9, AREA_RATIO_SMALL=0.002, AREA_RATIO_LARGE=0.2)).tau(
        areas
    )
    assert curve.tolist() == pytest.approx([0.1, 0.5], abs=1e-6)
    assert build_threshold(config(NAME="fixed", FIXED=0.6)).least_score == 0.6
    assert build_threshold(config(NAME="top_k", TOP_K=7)).k == 7
    with pytest.raises(ValueError, match="one of dynamic, fixed, top_k, got 'nonesuch'"):
        build_threshold(config(NAME="nonesuch"))
    assert all(issubclass(item, Threshold) for _, item in THRESHOLD_REGISTRY)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 < AREA_RATIO_SMALL < AREA_RATIO_LARGE"):
        dynamic(area_small=0.1, area_large=0.1)
    with pytest.raises(ValueError, match="TAU_LARGE must be in"):
        dynamic(tau_large=70)
    with pytest.raises(ValueError, match="FIXED must be in"):
        fixed(tau=-0.1)
    with pytest.raises(ValueError, match="TOP_K must be at least 1"):
        top_k(k=0)
