"""The command `sohes`: subcommands, fast help, usage errors, and consistent options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sohes_d2
from sohes_d2.cli import draw, show
from sohes_d2.cli.main import COMMANDS, main
from sohes_d2.labels.formats.base import Photo, write_photos
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

REPOSITORY = Path(__file__).parents[2]
LIMIT_SECONDS = 1.0  # CPU time


@pytest.fixture(scope="module")
def helps():
    """Command -> (output of --help, CPU seconds)."""
    texts = {}
    for name in ("", *COMMANDS):
        before = os.times()
        command = [sys.executable, "-m", "sohes_d2", *([name] if name else []), "--help"]
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False
        )
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        assert (result.returncode, result.stderr) == (0, "")
        texts[name] = (result.stdout, seconds)
    return texts


def test_help_is_fast(helps):
    for name, (text, seconds) in helps.items():
        assert text.startswith(f"usage: sohes {name}".rstrip()) and seconds < LIMIT_SECONDS, name
    assert all(name in helps[""][0] for name in COMMANDS)


def test_options_have_uniform_names(helps):
    """Older names are accepted only as aliases of the names that all tools share."""
    aliases = {
        "--score-threshold": "--min-score",
        "--json": "--labels",
        "--input": "--images",
        "--config-file": "--config",
        "--output-dir": "--output",
    }
    for name, (text, _) in helps.items():
        for old, new in aliases.items():
            if re.search(rf"^  .*{old}\b", text, re.MULTILINE):
                assert re.search(rf"{new}\b.*, {old}\b", text), f"sohes {name}: {old} without {new}"
    for name in ("label", "draw", "demo", "convert"):
        assert all(option in helps[name][0] for option in ("--entities N", "--min-score S", "--max-depth D")), name
    assert all("--workers" in helps[name][0] and "--device" in helps[name][0] for name in ("label",))


def test_errors_and_version(capsys):
    assert main(["labl"]) == 2
    assert "Did you mean label?" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert sohes_d2.__version__ in capsys.readouterr().out


def test_the_scripts_call_the_commands():
    doors = {}
    for path in (REPOSITORY / "tools").glob("*.py"):
        found = re.search(r"from sohes_d2\.cli\.(\w+) import main$", path.read_text(), re.MULTILINE)
        if found:
            doors[path.stem] = found[1]
            assert len(path.read_text().splitlines()) <= 10
    modules = {name.replace("-", "_") for name in COMMANDS}
    assert set(doors.values()) <= modules and modules - set(doors.values()) == {"convert", "doctor"}


def test_a_single_photo_is_accepted_instead_of_a_folder(tmp_path, capsys):
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:30, 5:40] = True
    masks[1, 10:20, 10:20] = True
    forest = Forest(encode_masks(masks), [-1, 0], (40, 60), scores=[0.9, 0.4])
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    names = ("a.png", "sub/b.png")
    for name in names:
        Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "photos" / name)
    write_photos(tmp_path / "labels.json", [Photo(name, forest) for name in names], "a test")
    one = ["--labels", str(tmp_path / "labels.json"), "--images", str(tmp_path / "photos" / "sub" / "b.png")]
    assert draw.main([*one, "--output", str(tmp_path / "drawn"), "--width", "300", "--min-score", "0.5"]) == 0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["forest_sub_b.png"]
    assert "1 masks (1 wholes" in capsys.readouterr().out
    assert show.main([*one, "--output", str(tmp_path / "page.html")]) == 0
    assert "1 images, 2 masks" in capsys.readouterr().out
    assert draw.main([*one[:3], str(tmp_path / "labels.json"), "--output", str(tmp_path / "drawn")]) == 2
    assert "has no image 'labels.json'" in capsys.readouterr().err


def test_a_closed_pipe_gives_no_traceback():
    command = [sys.executable, "-m", "sohes_d2", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
