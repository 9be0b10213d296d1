"""Damaged folders of a labeling run: merging and resuming give the bytes of an undamaged run, or are refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from helpers.harness import load_tool, run_forked, settings, violation, warm_up
from helpers.mutations import damaged_bytes, odd_files
from hypothesis import strategies as st
from PIL import Image

from sohes_d2.labeling import run_folder

FAST = ["--workers", "0", "--device", "cpu", "--images-per-shard", "2", "EXPLORATION.FEATURES.NAME", "color_texture"]
SHARDS = ["shard_00000.json", "shard_00001.json"]


class Runs:
    """A finished run of two shards in ``whole``, the same run killed within its second shard in ``part``."""

    def __init__(self, folder: Path):
        self.photos, self.whole, self.part, self.joined = (
            folder / name for name in ("photos", "whole", "part", "joined.json")
        )
        self.photos.mkdir()
        for k in range(4):
            pixels = np.full((24, 24 + k, 3), 200, np.uint8)
            pixels[6:18, 4 + k : 18] = (30, 90, 40 * k)
            Image.fromarray(pixels).save(self.photos / f"{k}.png")
        self.label, self.join = load_tool("generate_pseudo_labels"), load_tool("merge_shards")
        assert warm_up(self.label, self.labeling(self.whole)) == 0
        assert warm_up(self.join, [str(self.whole), str(self.joined)]) == 0
        self.expected = [(self.whole / name).read_bytes() for name in SHARDS]
        write = run_folder.write_label_file

        def stop_at_the_second(path, *content):
            if path.endswith(SHARDS[1]):
                raise KeyboardInterrupt
            return write(path, *content)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_folder, "write_label_file", stop_at_the_second)
            assert warm_up(self.label, self.labeling(self.part)) == 130
        assert (self.part / "shard_00001.partial.jsonl").stat().st_size > 500

    def labeling(self, output: Path, *more: str) -> list[str]:
        return ["--images", str(self.photos), "--output", str(output), *more, *FAST]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


@st.composite
def damaged_files(draw, folder: Path):
    """(name of a file of a folder, damaged bytes for it)."""
    path = draw(st.sampled_from(visible(folder)))
    data = path.read_bytes()
    if path.suffix == ".json" and draw(st.booleans()):
        return path.name, draw(odd_files(json.loads(data)))
    return path.name, draw(damaged_bytes(data))


class Findings:
    """Counts exit codes of examples, and keeps an input for each kind of violation."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.codes: Counter = Counter()
        self.wrong: dict[str, Path] = {}

    def add(self, code: int | None, found: str | None, name: str, data: bytes) -> None:
        self.codes[code] += 1
        if found and found not in self.wrong:
            self.wrong[found] = self._folder / f"{len(self.wrong)}-{name}"
            self.wrong[found].write_bytes(data)

    def check(self, what: str) -> None:
        print(f"{what}: {self.codes.total()} examples, exit codes {dict(self.codes)}, {len(self.wrong)} violations")
        assert not self.wrong


def test_damaged_shards_are_joined_correctly_or_refused(runs, tmp_path):
    work, findings = tmp_path / "work", Findings(tmp_path)

    @settings(4)
    @hypothesis.given(damaged_files(runs.whole))
    def check(damage):
        name, data = damage
        shutil.copytree(runs.whole, work / "shards")
        (work / "shards" / name).write_bytes(data)
        joined = work / "joined.json"
        outcome = run_forked(runs.join, [work / "shards", joined])
        found = violation(outcome)
        if outcome.code in (0, 3) and joined.read_bytes() != runs.joined.read_bytes():
            found = "other labels"
        elif outcome.code not in (0, 3) and joined.exists():
            found = found or f"code {outcome.code}, but a file"
        findings.add(outcome.code, found, name, data)
        shutil.rmtree(work)

    check()
    findings.check("join")


def test_a_damaged_run_is_resumed_to_the_same_bytes(runs, tmp_path):
    work, findings = tmp_path / "work", Findings(tmp_path)

    @settings(3)
    @hypothesis.given(damaged_files(runs.part))
    def check(damage):
        name, data = damage
        shutil.copytree(runs.part, work)
        (work / name).write_bytes(data)
        outcome = run_forked(runs.label, runs.labeling(work, "--resume"), seconds=60)
        found = violation(outcome)
        if not found and outcome.code:
            found = f"exit code {outcome.code}: {outcome.stderr.strip()[-200:]}"
        elif not found and [(work / file).read_bytes() for file in SHARDS] != runs.expected:
            found = "other labels"
        findings.add(outcome.code, found, name, data)
        shutil.rmtree(work)

    check()
    findings.check("resume")
