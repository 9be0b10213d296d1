"""The house rules that a reader relies on: imports run downwards, and the package's metadata agrees with itself."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
import setuptools

import sohes_d2

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "sohes_d2"

# What a folder of the package may import of the package, besides itself. The files at the top (compat, config, errors)
# are open to all; the package's __init__ is what users import, its __main__ the command.
BELOW = {
    "": {"structures", "weights", "modeling", "correction", "model_zoo"},  # for config.py
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


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all modules that the file imports, also inside functions, in the order of the lines."""
    package = path.relative_to(REPOSITORY).parent.parts
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            # `from package import module` names a module only together with the imported name
            names += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return [name for _, name in sorted(names)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_downwards(path):
    if path in (PACKAGE / "__init__.py", PACKAGE / "__main__.py"):
        return  # name all parts for users, and load none
    folder = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
    assert folder in BELOW, f"{name_of(path)}: say in BELOW what the new folder {folder!r} may import"
    for module in imported_modules(path):
        root, *rest = module.split(".")
        assert root not in ("tools", "tests", "datasets"), f"{name_of(path)} imports {module}"
        if root != "sohes_d2" or not rest or rest[0] not in BELOW:
            continue
        assert rest[0] == folder or rest[0] in BELOW[folder], f"{name_of(path)} imports {module}"


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
