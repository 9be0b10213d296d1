"""The house rules that a reader relies on: imports run downwards, and the package's metadata agrees with itself."""

from __future__ import annotations

import graphlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

import sohes_d2

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "sohes_d2"
sys.path.insert(0, str(REPOSITORY / "tools"))

import draw_imports  # noqa: E402
from draw_imports import imported_modules  # noqa: E402

# What a folder of the package may import of the package, besides itself. The files at the top (compat, config, errors)
# are open to all.
BELOW = {
    "": {"structures", "modeling", "correction", "cli"},  # config.py registers the models; __main__ is the command
    "structures": set(),
    "labels": {"structures"},
    "model_zoo": set(),
    "weights": {"structures"},
    "exploration": {"structures", "weights"},
    "modeling": {"structures", "weights"},
    "data": {"labels", "structures"},
    "evaluation": {"labels", "structures"},
    "visualization": {"labels", "structures", "exploration", "modeling"},
    "correction": {"structures", "exploration", "modeling"},
    "engine": {
        "labels",
        "structures",
        "weights",
        "exploration",
        "modeling",
        "data",
        "evaluation",
        "visualization",
        "correction",
    },
    "pretraining": {"labels", "structures", "weights", "exploration", "data", "evaluation", "engine"},
    "cli": {
        "labels",
        "structures",
        "weights",
        "exploration",
        "data",
        "evaluation",
        "visualization",
        "engine",
        "pretraining",
    },
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_downwards(path):
    folder = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
    assert folder in BELOW, f"{name_of(path)}: say in BELOW what the new folder {folder!r} may import"
    for module in imported_modules(path):
        root, *rest = module.split(".")
        assert root not in ("tools", "tests", "datasets"), f"{name_of(path)} imports {module}"
        if root != "sohes_d2" or not rest or rest[0] not in BELOW:
            continue
        assert rest[0] == folder or rest[0] in BELOW[folder], f"{name_of(path)} imports {module}"


def test_no_imports_run_in_circles():
    graph = draw_imports.import_graph()
    assert len(graph) == len(SOURCES) and "sohes_d2.config" in graph["sohes_d2.config_file"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import one another in a circle: {' -> '.join(error.args[1])}")


def test_the_picture_of_imports_is_that_of_the_code():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert draw_imports.mermaid() in text, "run `make imports`"


@pytest.mark.parametrize("path", sorted((PACKAGE / "structures").rglob("*.py")), ids=name_of)
def test_ground_floor_has_no_torch_modules(path):
    assert not [module for module in imported_modules(path) if module.startswith("torch.nn")]


def test_every_folder_is_a_package():
    folders = {path.parent for path in SOURCES}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_requirements_are_pinned_and_within_the_ranges_of_setup(monkeypatch):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"(\S+)==(\S+)", line).groups() for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}

    metadata: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: metadata.update(keywords))
    runpy.run_path(str(REPOSITORY / "setup.py"))
    assert metadata["version"] == sohes_d2.__version__
    assert "sohes_d2.structures" in metadata["packages"]
    tested = [
        line
        for name in ("dev", "onnx", "browser", "fast-eval", "notebook")
        for line in metadata["extras_require"][name]
    ]
    for line in metadata["install_requires"] + tested:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line
