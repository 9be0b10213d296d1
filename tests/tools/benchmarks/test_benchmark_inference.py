"""The inference benchmark: its masks are correct, and its limit decides the exit code."""

import pytest
from benchmarks import benchmark_inference as benchmark


def test_blobs_are_of_all_sizes_and_wide_ones_are_wide():
    logits, masks = benchmark.generate(200, (800, 1200), wide=False)
    assert logits.shape == (200, 2) and masks.shape == (200, 200, 304)
    shares = (masks > 0).flatten(1).float().mean(1)
    assert shares.min() < 0.001 and 0.2 < shares.max() < 0.6
    # smooth: neighbours differ by a small fraction of the range of the logits
    assert (masks[:, 1:] - masks[:, :-1]).abs().mean() < 0.05 * (masks.max() - masks.min())
    wide = benchmark.generate(20, (800, 1200), wide=True)[1] > 0
    assert wide.any(1).float().mean() > 0.9 and 0.2 < wide.float().mean() < 0.45


@pytest.mark.parametrize(("limit", "code"), [(2 * 2**30, 0), (0, 1)])
def test_the_command(monkeypatch, capsys, limit, code):
    monkeypatch.setattr(benchmark, "LIMIT_BYTES", limit)
    monkeypatch.setattr(benchmark, "SHORTEST_SIDE", 64)
    assert benchmark.main(["--masks", "8", "--size", "96", "160"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 masks of 96 x 160 pixels from logits of 16 x 32, cpu")
    assert lines[-1] == f"under 2 GiB: {code == 0}"
