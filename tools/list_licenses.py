#!/usr/bin/env python
"""Write docs/LICENSES.md: the licences of what this package needs when it runs, from the metadata of what is installed.

    python tools/list_licenses.py --output docs/LICENSES.md

Exit code: 0 written, 2 a required package is not installed, or usage error.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

from sohes_d2.cli.runner import run_tool, tool_parser
from sohes_d2.errors import InputError
from sohes_d2.structures.files import check_output

ROOT = Path(__file__).resolve().parents[1]
# Names that classifiers and free texts give the same licence by.
_FREE_TEXT = re.compile(r"^(.{1,60})$")
TEXT = """# Licences of third parties

SOHES-D2 is under [Apache-2.0](../LICENSE). What it installs, brings along and shows has licences of its own.

## Packages

What `pip install sohes_d2` installs, with what that needs in turn, as the metadata of the installed versions says it,
where this page was made (Linux); `python tools/list_licenses.py --output docs/LICENSES.md` makes it anew. Detectron2,
which `sohes setup` installs, is under Apache-2.0. CUDA libraries that come with torch are under NVIDIA's own terms.
Extras are not listed.

| package | version | licence |
|---|---|---|
{rows}

## Weights

| file | trained on | licence |
|---|---|---|
| [vit_mini8](../sohes_d2/model_zoo/vit_mini8.md) | photos of ImageNet and BSDS500 | for research, as the photos are |
| [sohes_mini8](../sohes_d2/model_zoo/sohes_mini8/README.md) | the same kind | the same |

The photos of both sets are for non-commercial research. Weights that a name downloads (DINO ViT-B/8, other models of
timm, CascadePSP) have the licences of their authors.

## Photos

The photos of `make demo` come inside scikit-image; author and licence of each are in
[datasets/README.md](../datasets/README.md#demo-photos). Data sets that `datasets/prepare_*.py` read are no part of this
project; their licences are listed [there](../datasets/README.md#sizes-and-licences), too.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.md", help="page to write")
    return parser.parse_args(arguments)


def required() -> list[str]:
    """The requirements of setup.py."""
    import setuptools

    found: dict = {}
    with mock.patch.object(setuptools, "setup", lambda **keywords: found.update(keywords)):
        runpy.run_path(str(ROOT / "setup.py"))
    return [*found["install_requires"], *found["extras_require"]["opencv"]]


def closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Installed packages that the requirements need, directly or not, by name.

    Raises:
        InputError: one is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise InputError(f"{name} is not installed; make this page in the environment of `make env`") from error
        waiting += [Requirement(line) for line in found[name].requires or ()]
    return dict(sorted(found.items()))


def licence_of(distribution: metadata.Distribution) -> str:
    """The licence: an expression of SPDX, else what the classifiers say, else a line of free text."""
    facts = distribution.metadata
    if facts["License-Expression"]:
        return facts["License-Expression"]
    classified = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier") or () if c.startswith("License :: ")]
    classified = [name for name in classified if name != "OSI Approved"]
    if classified:
        return ", ".join(classified)
    text = _FREE_TEXT.match((facts["License"] or "").strip())
    return text[1] if text else "see the package"


def write(args: argparse.Namespace) -> None:
    """Write the page."""
    from sohes_d2.structures.files import write_text

    check_output(args.output, folder=False)
    packages = closure(required())
    rows = [f"| {name} | {found.version} | {licence_of(found)} |" for name, found in packages.items()]
    write_text(args.output, TEXT.format(rows="\n".join(rows)))
    print(f"{args.output}: {len(rows)} packages")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_tool("list_licenses", parse_arguments, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
