"""Structure of the package: layered imports, and consistent metadata."""

from __future__ import annotations

import graphlib
import re
import runpy
from pathlib import Path

import draw_imports
import pytest
import setuptools
from draw_imports import imported_modules

import sohes_d2

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "sohes_d2"

# Folders of the package from top to bottom. Each may import from rows below its own, and from its own row only as in
# EXCEPTIONS. The top-level modules `compat`, `devices` and `errors` are open to all.
ROWS = (
    {"cli"},
    {"engine", "inference", "labeling", "pretraining"},
    {"correction", "report"},
    {"exploration", "modeling", "data", "evaluation", "visualization", "model_zoo"},
    {"labels", "weights", "config"},
    {"structures"},
)
EXCEPTIONS = {"pretraining": {"engine"}}
OPEN_TO_ALL = {"compat", "devices", "errors"}
ENTRIES = {"__init__", "__main__"}  # top-level modules that may import everything
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def may_import(folder: str) -> set[str]:
    row = next((k for k, row in enumerate(ROWS) if folder in row), None)
    assert row is not None, f"say in ROWS where the new folder {folder!r} belongs"
    return {folder}.union(*ROWS[row + 1 :], EXCEPTIONS.get(folder, set()), OPEN_TO_ALL)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_downwards(path):
    module, *below = path.relative_to(PACKAGE).with_suffix("").parts
    allowed = may_import(module) if below else OPEN_TO_ALL
    for imported in imported_modules(path):
        root, *rest = imported.split(".")
        assert root not in ("tools", "tests", "datasets"), f"{name_of(path)} imports {imported}"
        if root == "sohes_d2" and (below or module not in ENTRIES) and rest != ["__version__"]:
            assert rest[0] in allowed, f"{name_of(path)} imports {imported}"


def test_there_are_no_import_cycles():
    graph = draw_imports.import_graph()
    assert len(graph) == len(SOURCES) and "sohes_d2.config" in graph["sohes_d2.config.load"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import one another in a circle: {' -> '.join(error.args[1])}")


def test_the_import_graph_matches_the_code():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert draw_imports.mermaid() in text, "run `make imports`"


def test_files_that_build_a_model_register_the_models():
    """Detectron2 finds a model by its name only after the module that registers it has been imported."""
    files = (*SOURCES, *(PACKAGE.parent / "tools").rglob("*.py"))
    builders = [path for path in files if re.search(r"from detectron2.modeling import .*build_model", path.read_text())]
    assert len(builders) >= 4
    missing = [path.name for path in builders if not re.search(r"import correction\b", path.read_text())]
    assert missing == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "structures").rglob("*.py")), ids=name_of)
def test_structures_have_no_torch_modules(path):
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
