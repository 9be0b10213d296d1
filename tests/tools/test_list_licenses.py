"""The licence page: it lists every requirement, and licences are read correctly."""

import re
import runpy
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
TOOL = runpy.run_path(str(REPOSITORY / "tools" / "list_licenses.py"))


def test_the_page_lists_what_is_required():
    page = (REPOSITORY / "docs" / "LICENSES.md").read_text()
    listed = dict(re.findall(r"^\| ([\w.-]+) \| [\w.+]+ \| (.+) \|$", page, re.MULTILINE))
    required = {canonicalize_name(Requirement(line).name) for line in TOOL["required"]()}
    assert len(required) > 20 and required <= listed.keys() and all(listed.values())
    assert "vit_mini8" in page and "sohes_mini8" in page and "scikit-image" in page


def test_the_page_is_written_from_the_installed_packages(tmp_path):
    assert TOOL["main"](["--output", str(tmp_path / "page.md")]) == 0
    assert "| numpy | " in (tmp_path / "page.md").read_text()


def test_where_a_licence_is_read_from():
    def licence(**facts):
        message = Message()
        for key, values in facts.items():
            for value in values if isinstance(values, list) else [values]:
                message[key.replace("_", "-")] = value
        return TOOL["licence_of"](SimpleNamespace(metadata=message))

    classifiers = ["License :: OSI Approved", "License :: OSI Approved :: MIT License", "Topic :: x"]
    assert licence(License_Expression="MIT", Classifier=classifiers) == "MIT"
    assert licence(License="BSD", Classifier=classifiers) == "MIT License"
    assert licence(License="BSD") == "BSD"
    assert licence(License="a\nlong text") == licence() == "see the package"
