"""The wheel outside of the repository: built, installed into a new environment, and used there.

That environment has the libraries of this one, but neither the repository nor Detectron2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
LEFT_OUT = ("detectron2", "sohes_d2", "__editable__", "_distutils_hack", "distutils-precedence", "setuptools", "pip")
SIDE = 64  # pixels of a photo: merging is not compiled here, which would take longer than the whole test


def run(command, folder, code=0):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    command = [str(word) for word in command]
    result = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    without = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.nbi", "*.nbc")
    for name in ("sohes_d2", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=without)
    pytest.importorskip("setuptools", minversion="77")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, "."], source)
    shutil.rmtree(source / "build", ignore_errors=True)
    run([sys.executable, "setup.py", "-q", "sdist", "-d", folder], source)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def sohes(archives, tmp_path_factory):
    """Runs the installed command in a folder outside of the repository."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    binaries = folder / "env" / "bin"
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    for path in Path(torch.__file__).parents[1].iterdir():
        if not path.name.startswith(LEFT_OUT) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", binaries / "python"]
    run([*pip, "install", "--no-deps", "--no-index", "--no-compile", archives[0]], folder)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name, colour in (("a", (200, 60, 40)), ("b", (40, 90, 200))):
        image = rng.integers(90, 110, (SIDE, SIDE, 3)).astype(np.uint8)
        image[12:48, 16:52] = colour
        image[20:32, 24:36] = 255 - np.array(colour)
        Image.fromarray(image).save(folder / "photos" / f"{name}.png")

    def command(line, code=0):
        return run([binaries / "sohes", *line.split()], folder, code)

    command.folder, command.python = folder, binaries / "python"
    return command


def test_contents_of_the_archives(archives):
    wheel, sdist = archives
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(contents.read(f"{info}/METADATA").decode())
        scripts = contents.read(f"{info}/entry_points.txt").decode()
    configs = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("configs/**/*.yaml")}
    assert len(configs) > 20 and {f"sohes_d2/{name}" for name in configs} <= names
    assert {"sohes_d2/py.typed", "sohes_d2/report/assets/page.html"} <= names
    assert {"sohes_d2/model_zoo/vit_mini8.safetensors", "sohes_d2/model_zoo/sohes_mini8/config.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "configs/"))]
    assert "sohes = sohes_d2.cli.main:main" in scripts
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.9"
    assert len(metadata.get_all("Classifier")) >= 8 and metadata.get_all("Project-URL")
    assert metadata["Description-Content-Type"] == "text/markdown"
    with tarfile.open(sdist) as contents:
        held = {name.partition("/")[2] for name in contents.getnames()}
    assert configs | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "sohes_d2/cli/main.py"} <= held


def test_commands_outside_of_the_repository(sohes):
    folder = sohes.folder
    printed = sohes("label --config joint --images photos --output labels.json --workers 0")
    assert "2 images" in printed
    labels = json.loads((folder / "labels.json").read_text())
    assert [image["file_name"] for image in labels["images"]] == ["a.png", "b.png"] and len(labels["annotations"]) > 20
    assert "2 images" in sohes("show --labels labels.json --images photos --output page.html")
    assert "<html" in (folder / "page.html").read_text(encoding="utf-8")
    sohes("evaluate --gt labels.json --pred labels.json --output metrics.json")
    assert json.loads((folder / "metrics.json").read_text())["segm/AR@1000"] == pytest.approx(100)
    assert f"{len(labels['annotations'])} masks" in sohes("inspect --labels labels.json")
    sohes("convert --labels labels.json --to cvat --output annotations.xml")
    sohes("convert --labels annotations.xml --from cvat --output again.json")
    again = json.loads((folder / "again.json").read_text())
    keys = ("segmentation", "bbox", "score", "depth")
    assert [[a[key] for key in keys] for a in again["annotations"]] == [
        [a[key] for key in keys] for a in labels["annotations"]
    ]


def test_commands_that_need_detectron2_say_how_to_install_it(sohes):
    assert "sohes setup" in sohes("train --config Base-SOHES --num-gpus 0", code=1)
    code = (
        "import sohes_d2, sohes_d2.model_zoo as zoo; print(sohes_d2.__file__);"
        "print(zoo.get_config('joint').EXPLORATION.FEATURES.NAME, zoo.get_config_file('synthetic'))"
    )
    printed = run([sohes.python, "-c", code], sohes.folder)
    assert str(REPOSITORY) not in printed
    assert "joint" in printed and printed.rstrip().endswith("sohes_d2/configs/exploration/synthetic.yaml")
