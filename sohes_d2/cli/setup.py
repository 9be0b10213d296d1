"""Install Detectron2, which has no official package on PyPI, for the interpreter that runs this file.

In this order:
  1. A Detectron2 that is already importable is used.
  2. The official repository at a pinned commit, if it responds within seconds. Compiling its C++ ops takes minutes.
  3. The release 0.6 from PyPI's source archive `pb1-detectron2`, checked against a pinned sha256: only its Python and
     yaml files, as a wheel that pip can list and uninstall. `sohes_d2.compat` makes it run without compiled ops on
     current libraries.

    sohes setup
    sohes setup --source git --force

torch must be installed before; Detectron2's other dependencies come with this package. Downloads use pip's
configuration (index, proxy, certificates).

Exit code: 0 Detectron2 is installed, 1 it is not, 2 usage error.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from ..errors import SOHESError
from .runner import EXIT_DONE, EXIT_FAILED, make_main, tool_parser

REPOSITORY = "https://github.com/facebookresearch/detectron2"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
ANSWER_SECONDS = 8

SDIST = "pb1-detectron2"
VERSION = "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Detectron2's own setup.py installs these folders under these package names.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}
# The local version label distinguishes this wheel from an official one.
WHEEL_VERSION = f"{VERSION}+python.only"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes setup")
    parser.add_argument("--source", choices=("auto", "git", "sdist"), default="auto", help="default: git, then sdist")
    parser.add_argument("--force", action="store_true", help="install even if Detectron2 is already importable")
    return parser.parse_args(arguments)


def install(args: argparse.Namespace) -> int:
    """Install Detectron2; returns the exit code."""
    if not args.force:
        found = importable()
        if found:
            say(f"already installed: {found}")
            return EXIT_DONE
    if importlib.util.find_spec("torch") is None:
        say(f"torch is not installed for {sys.executable}; install it first: pip install torch")
        return EXIT_FAILED

    ways = {"git": install_from_git, "sdist": install_from_sdist}
    for name in ways if args.source == "auto" else [args.source]:
        try:
            say("took " + ways[name]())
            return EXIT_DONE
        except SOHESError as error:
            say(f"could not be installed from {name}: {error}")
    say("nothing was installed. Install it by hand: https://detectron2.readthedocs.io/tutorials/install.html")
    return EXIT_FAILED


main = make_main("sohes setup", parse_arguments, install)


def say(message: str) -> None:
    print(f"Detectron2: {message}", flush=True)


def importable() -> str | None:
    """Version and folder of the Detectron2 that a new interpreter imports, or None."""
    code = "import detectron2, os; print(detectron2.__version__, 'at', os.path.dirname(detectron2.__file__))"
    # Run in an empty folder, so that a clone of Detectron2 in the working directory is not imported.
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([sys.executable, "-c", code], cwd=folder, check=False, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def install_from_git() -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        command = ["git", "ls-remote", "--exit-code", REPOSITORY, "HEAD"]
        answer = subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except FileNotFoundError:
        raise SOHESError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise SOHESError(f"{REPOSITORY} did not respond in {ANSWER_SECONDS} s") from None
    if answer.returncode != 0:
        raise SOHESError(last_line(answer.stderr) or f"git ls-remote ended with {answer.returncode}")
    say(f"compiling {REPOSITORY} at {COMMIT[:10]}; this takes minutes")
    # --no-build-isolation: its setup.py imports torch, the version to compile for.
    source = f"git+{REPOSITORY}@{COMMIT}"
    pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", source, env=environment)
    return f"the official repository at {COMMIT[:10]}"


def install_from_sdist() -> str:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(f"{SDIST}=={VERSION} --hash=sha256:{SHA256}\n")
        # pip checks the hash before it runs any code of the archive. To read the metadata it runs setup.py, which needs
        # torch, hence --no-build-isolation.
        pip(
            *("download", "--no-deps", "--no-build-isolation", "--no-binary", SDIST, "--require-hashes"),
            *("--dest", folder, "-r", str(requirement)),
        )
        archives = list(Path(folder).glob("*.tar.gz"))
        if len(archives) != 1:
            raise SOHESError(f"pip was expected to download one .tar.gz, not {sorted(p.name for p in archives)}")
        wheel = build_wheel(archives[0], Path(folder))
        pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    return f"the Python files of release {VERSION} ({SDIST} from PyPI, sha256 {SHA256[:10]}...), without compiled ops"


def build_wheel(archive: Path, folder: Path) -> Path:
    """Build a wheel in `folder` from the Python and yaml files and the licence in the source archive."""
    dist_info = f"detectron2-{WHEEL_VERSION}.dist-info"
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            # pip will unpack the wheel, so it must not contain paths that lead outside.
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or path.is_absolute() or ".." in path.parts:
                continue
            name = place(PurePosixPath(*path.parts[1:]))
            if name is not None:
                files[name.replace("{dist_info}", dist_info)] = content.read()
    if "detectron2/__init__.py" not in files:
        raise SOHESError(f"{archive.name} has no detectron2/__init__.py")
    files[f"{dist_info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: detectron2\nVersion: {WHEEL_VERSION}\n"
        f"Summary: Python files of Detectron2 {VERSION}, from {SDIST}\nHome-page: {REPOSITORY}\nLicense: Apache-2.0\n"
    ).encode()
    files[f"{dist_info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sohes setup\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = f"{dist_info}/RECORD"
    files[record] = "".join(f"{name},{digest(data)},{len(data)}\n" for name, data in files.items()).encode() + (
        f"{record},,\n".encode()
    )
    wheel = folder / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return wheel


def place(path: PurePosixPath) -> str | None:
    """Path in the wheel of a file of the source archive (path below its root), or None if it is not included."""
    if str(path) == "LICENSE":
        return "{dist_info}/LICENSE"
    if path.suffix not in (".py", ".yaml"):
        return None
    if path.parts[0] == "detectron2":
        return str(path)
    for folder, package in PROJECTS.items():
        if str(path).startswith(folder + "/"):
            return package + str(path)[len(folder) :]
    return None


def digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pip(*arguments: str, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stdout + result.stderr, file=sys.stderr)
        raise SOHESError(f"`pip {arguments[0]}` failed: {last_line(result.stderr)} (its output is above)")


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
