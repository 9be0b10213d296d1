"""The documentation against the code: links, paths, options, config keys, defaults, and the first steps."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import runpy
import shlex
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image

import sohes_d2
from sohes_d2.cli.main import COMMANDS
from sohes_d2.cli.main import main as sohes_main
from sohes_d2.config.load import load_config

REPOSITORY = Path(__file__).parents[1]
DOCS = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "sohes_d2" / "model_zoo").rglob("*.md"),
    ]
)
RECIPE = REPOSITORY / "tools" / "reproduce_zoo.sh"
GETTING_STARTED = REPOSITORY / "docs" / "GETTING_STARTED.md"
METHOD = REPOSITORY / "docs" / "METHOD.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SCRIPT = re.compile(r"(?:tools|datasets)/[\w/]+\.py")
COMMAND = re.compile(r"(?:\S+/)?sohes (?=[a-z-]+( |$))")
OUR_PATH = re.compile(r"(?:tools|configs|datasets|docs|sohes_d2|tests)/[\w./-]+\.(?:py|yaml|md)")
OPTION = re.compile(r"--[a-z][a-z-]*")
# GT.json is not a key; names below OPTIONS may be those of other libraries
KEY = re.compile(r"[A-Z][A-Z0-9_]+(?:\.[A-Z][A-Z0-9_]+)+(?:(?<=OPTIONS)\.\w+)?(?![\w.])")
FOREIGN_OPTIONS = {"--shm-size"}  # of docker


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def read(path: Path) -> str:
    """The text of a page; a shell script becomes one code block."""
    text = path.read_text(encoding="utf-8")
    return f"```bash\n{text}```\n" if path.suffix == ".sh" else text


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def inline_code(text: str) -> list[str]:
    return INLINE.findall(FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """The words of each command line that runs one of our scripts or `sohes`: script or subcommand, then arguments."""
    lines = [line for body in blocks(text, "bash", "") for line in body.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *(code for code in inline_code(text) if code.startswith(("python ", "sohes ")))]:
        script, command = SCRIPT.search(line), COMMAND.match(line)
        if command:
            name, *words = shlex.split(line[command.end() :], comments=True)
            found.append([f"sohes {name}", *words])
        elif script and line.split(None, 1)[0].endswith("python"):
            found.append(shlex.split(line[script.start() :], comments=True))
    return found


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def help_of(script: str) -> str:
    """Output of ``--help`` of a script or of ``sohes COMMAND``."""
    printed = io.StringIO()
    arguments = mock.patch("sys.argv", [script, "--help"])
    # some set environment variables for the number of threads
    with arguments, mock.patch.dict(os.environ), redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        if script.startswith("sohes "):
            sohes_main([script.removeprefix("sohes "), "--help"])
        else:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    assert stopped.value.code in (0, None)
    return printed.getvalue()


def has_option(script: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_of(script)) is not None


@cache
def config(file: str):
    return load_config(file and str(REPOSITORY / file))


def value_of(cfg, key: str):
    """The value of a dotted key.

    Raises:
        KeyError: the key does not exist.
    """
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def is_key(key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    try:
        node = value_of(config(""), parent)
    except (KeyError, TypeError):
        return False
    return leaf in node or node.is_new_allowed()


def pairs_of(words: list[str]) -> list[str]:
    """The KEY VALUE pairs at the end of a command, as a flat list."""
    start = next((k for k, word in enumerate(words) if KEY.fullmatch(word)), len(words))
    return words[start:]


def test_all_pages_exist():
    names = {name_of(path) for path in DOCS}
    assert {"README.md", "docs/INSTALL.md", "docs/GETTING_STARTED.md", "docs/METHOD.md", "datasets/README.md"} <= names
    assert len(commands(read(GETTING_STARTED))) >= 10 and len(commands(read(RECIPE))) >= 8


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_are_valid(path):
    for link in LINK.findall(FENCE.sub("", read(path))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{name_of(path)} links to {link}"
        if anchor:
            anchors = {slug(heading) for heading in HEADING.findall(FENCE.sub("", read(target)))}
            assert anchor in anchors, f"{name_of(path)} links to {link}; {target.name} has {sorted(anchors)}"


def test_readme_links_to_every_page():
    links = set(LINK.findall(read(REPOSITORY / "README.md")))
    assert not [name_of(path) for path in DOCS if name_of(path) not in {"README.md", *links}]


@pytest.mark.parametrize("path", [*DOCS, RECIPE], ids=name_of)
def test_named_files_exist(path):
    text = read(path)
    code = [*inline_code(text), *(body for _, body in FENCE.findall(text))]
    for name in {name for piece in code for name in re.findall(rf"(?<![\w/.*]){OUR_PATH.pattern}", piece)}:
        assert (REPOSITORY / name).is_file(), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", [*DOCS, RECIPE], ids=name_of)
def test_options_of_commands_are_known(path):
    for script, *words in commands(read(path)):
        for option in (word.partition("=")[0] for word in words if OPTION.match(word)):
            assert has_option(script, option), f"{name_of(path)}: {script} has no {option}"


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_options_in_sentences_are_known(path):
    files = [p for folder in ("tools", "datasets") for p in (REPOSITORY / folder).rglob("*.py")]
    scripts = sorted(name_of(p) for p in files if "__main__" in read(p))
    scripts += [f"sohes {name}" for name in COMMANDS]
    for code in inline_code(read(path)):
        option = OPTION.match(code)
        if option and option[0] not in FOREIGN_OPTIONS:
            assert any(has_option(script, option[0]) for script in scripts), f"{name_of(path)}: nothing has {code}"


@pytest.mark.parametrize("path", [*DOCS, RECIPE], ids=name_of)
def test_config_keys_exist(path):
    """Keys in sentences, and keys in commands, whose values must be valid as well."""
    text = read(path)
    for code in inline_code(text):
        key = KEY.match(code)
        if key:
            assert is_key(key[0]), f"{name_of(path)} names {key[0]}"
    for words in commands(text):
        pairs = pairs_of(words)
        file = words[words.index("--config-file") + 1] if "--config-file" in words else ""
        # other files are written by earlier commands
        known = file if (REPOSITORY / file).is_file() else ""
        load_config(known and str(REPOSITORY / known), pairs)


def test_defaults_in_method_are_those_of_the_code():
    seen = set()
    for line in read(METHOD).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "default" in cells:
            cfg = config("")
        elif any(cell.startswith("in Base-SOHES") for cell in cells):
            cfg = config("configs/Base-SOHES.yaml")
        for cell, following in zip(cells, cells[1:]):
            key = KEY.fullmatch(cell.strip("`"))
            if key and cell.startswith("`"):
                written = yaml.safe_load(INLINE.match(following)[1])
                value = value_of(cfg, key[0])
                value = list(value) if isinstance(value, tuple) else value
                assert written == value, f"{key[0]} is {value!r}, not {written!r}"
                assert re.search(r"\[[PHUMAVSD]\]", cells[-1]), f"{key[0]} has no source"
                seen.add(key[0])
    ours = {f"CORRECTION.{name}" for name in leaves(config("").CORRECTION)}
    ours |= {f"EXPLORATION.{name}" for name in leaves(config("").EXPLORATION)}
    assert not ours - seen, "METHOD.md should list them"
    assert len(seen) > 90


def leaves(node, prefix: str = ""):
    for name, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_imports_of_python_examples_exist(path):
    for body in blocks(read(path), "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name_of(path)}: {node.module} has no {alias.name}"


def test_readme_is_short_and_its_python_section_runs(tmp_path, monkeypatch, caplog):
    """The section runs unchanged, on a small photo and offline."""
    text = read(REPOSITORY / "README.md")
    assert len(text.splitlines()) < 150
    (script,) = blocks(text, "python")
    assert len([line for line in script.splitlines() if line.strip()]) <= 14
    from sohes_d2.exploration.features import build

    monkeypatch.setattr(build, "hub_cached_file", lambda name: None)
    monkeypatch.setattr(build, "hub_reachable", lambda name, timeout: False)
    photo = np.random.default_rng(0).integers(90, 110, (72, 96, 3)).astype(np.uint8)
    photo[10:60, 20:80] = (200, 60, 40)
    photo[30:50, 50:70] = (40, 90, 200)
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(script, "README.md", "exec"), names)
    assert type(names["labeler"].extractor).__name__ == "JointExtractor"
    assert "WARNING" in {record.levelname for record in caplog.records if record.name == build.__name__}
    lines = printed.getvalue().splitlines()
    assert int(lines[0].split()[0]) == len(names["table"]) > 3 and lines[0].endswith("(72, 96)")
    shown = [line.split()[0] for line in lines[1:]]
    assert 1 < len(shown) <= 20 and sorted(shown, key=int) == [str(k + 1) for k in range(len(shown))]
    assert names["chain"][0].parent is None and all(entity.mask[40, 60] for entity in names["chain"][-1:])
    assert Image.open("forest.png").size == (96, 72)
    assert len(names["forest"]) <= 20 and names["forest"].image_size == (72, 96)


def test_citation_and_licence():
    citation = yaml.safe_load(read(REPOSITORY / "CITATION.cff"))
    for field in ("cff-version", "message", "title", "authors"):  # required by the format
        assert citation[field]
    assert citation["version"] == sohes_d2.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"].startswith("SOHES: ") and paper["year"] == 2024 and len(paper["authors"]) == 10
    assert "2404.12386" in paper["url"]
    licence = read(REPOSITORY / "LICENSE")
    assert "Apache License" in licence and "Version 2.0" in licence
    assert f"## [{sohes_d2.__version__}]" in read(REPOSITORY / "CHANGELOG.md")


def test_getting_started_commands_run(tmp_path, monkeypatch):
    """The commands for labels, pictures and the page run on two tiny photos, with fewer tokens."""
    photos = tmp_path / "output" / "mine" / "photos"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, colour in (("a", (200, 60, 40)), ("b", (40, 90, 200))):
        image = rng.integers(90, 110, (96, 96, 3)).astype(np.uint8)
        image[20:70, 25:80] = colour
        image[30:50, 35:55] = 255 - np.array(colour)
        Image.fromarray(image).save(photos / f"{name}.png")

    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    wanted = ("sohes label", "sohes draw", "sohes show", "sohes inspect")
    steps = {words[0]: words for words in reversed(commands(read(GETTING_STARTED)))}  # the first of each
    for tool in wanted:
        _, *words = steps[tool]
        if tool == "sohes label":
            # starting two processes would take longer than the work
            words = ["--workers", "0", *words]
            words += ["EXPLORATION.FEATURES.TOKEN_BUDGET", "1024"]
        assert sohes_main([tool.removeprefix("sohes "), *words]) == 0, tool

    mine = tmp_path / "output" / "mine"
    assert len(list((mine / "pictures").glob("forest_*.png"))) == 2
    assert "<html" in (mine / "labels.html").read_text(encoding="utf-8")
    assert (mine / "labels.png").stat().st_size > 0
