"""The Dockerfile without Docker: instructions, copied files, and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sohes_d2.cli.main import COMMANDS
from sohes_d2.cli.main import main as sohes

REPOSITORY = Path(__file__).parents[1]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions():
    text = re.sub(r"^#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines]


def commands():
    """Words of each command of the RUN instructions."""
    runs = [text for name, text in instructions() if name == "RUN"]
    return [shlex.split(command) for run in runs for command in run.split("&&")]


def test_instructions():
    found = instructions()
    assert {name for name, _ in found} <= KNOWN
    assert dict(text.split("=") for name, text in found if name == "ARG") == {"PYTHON": "3.11", "TORCH": "cpu"}
    (base,) = [text for name, text in found if name == "FROM"]
    assert base == "python:${PYTHON}-slim"
    users = [text for name, text in found if name == "USER"]
    assert users and users[-1] != "root", "the command does not run as root"
    assert found[-2:] == [("ENTRYPOINT", '["sohes"]'), ("CMD", '["--help"]')]


def test_copied_files_exist_and_are_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {source for name, text in instructions() if name == "COPY" for source in text.split()[:-1]}
    assert copied == kept
    assert all((REPOSITORY / source).exists() for source in copied)


def test_commands_exist(capsys):
    ours = [words for words in commands() if words[0] == "sohes"]
    assert [words[1] for words in ours] == ["setup", "doctor"]
    for _, name, *words in ours:
        assert name in COMMANDS
        with pytest.raises(SystemExit) as end:
            sohes([name, "--help"])
        printed = capsys.readouterr().out
        assert end.value.code == 0 and all(word in printed for word in words)


def test_installed_versions_are_the_tested_ones():
    pins = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert len([line for line in pins if re.match(r"(torch|torchvision)==", line)]) == 2
    (install,) = [words for words in commands() if words[0] == "pip" and words[-1].startswith(".[")]
    assert install[2:4] == ["--constraint", "requirements.txt"]
    extras = re.search(r"\[(.*)\]", install[-1])[1].split(",")
    setup = (REPOSITORY / "setup.py").read_text()
    assert all(f'"{extra}": [' in setup for extra in extras)
