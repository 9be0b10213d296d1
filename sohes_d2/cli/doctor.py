"""Check the installation: what is present, what is missing, and how to fix it.

    sohes doctor

Exit code: 0 all phases can run, 1 they cannot. Needs only Python: `python -m sohes_d2 doctor` also runs in a clone with
a broken environment.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .runner import available_cores, tool_parser

OK, OPTIONAL, MISSING = "ok", "--", "!!"
_GIB = 1024**3
_PIP = f"{os.path.basename(sys.executable) or 'python'} -m pip install"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: the item that was checked.
        state: OK, OPTIONAL (missing, not required) or MISSING (required).
        detail: what was found.
        remedy: how to fix it; "" if there is nothing to do.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Package:
    """A library: its import name, its pip name, and its purpose."""

    module: str
    pip: str
    purpose: str = ""


# torch first: others import it.
REQUIRED = (
    Package("torch", "torch"),
    Package("torchvision", "torchvision"),
    Package("timm", "timm"),
    Package("numpy", "numpy"),
    Package("scipy", "scipy"),
    Package("numba", "numba"),
    Package("cv2", "opencv-python-headless"),
    Package("PIL", "pillow"),
    Package("pycocotools.mask", "pycocotools"),
    Package("safetensors", "safetensors"),
    Package("huggingface_hub", "huggingface-hub"),
    Package("fvcore", "fvcore"),
    Package("iopath", "iopath"),
    Package("yacs", "yacs"),
    Package("omegaconf", "omegaconf"),
    Package("hydra", "hydra-core"),
    Package("tabulate", "tabulate"),
    Package("cloudpickle", "cloudpickle"),
    Package("termcolor", "termcolor"),
    Package("matplotlib", "matplotlib"),
    Package("tensorboard", "tensorboard"),
)
EXTRAS = (
    Package("faster_coco_eval", "faster-coco-eval", "evaluation several times as fast as with pycocotools"),
    Package("ray", "ray", "phase 1 on a cluster: sohes label --engine ray"),
    Package("pydensecrf.densecrf", "pydensecrf2", "the refiner crf of phase 1"),
    Package("segmentation_refinement", "segmentation-refinement", "the refiner cascadepsp of phase 1"),
    Package("skimage", "scikit-image", "the photos of the demo"),
    Package("onnx", "onnx", "writing ONNX files: sohes export-onnx"),
    Package("onnxscript", "onnxscript", "writing ONNX files: sohes export-onnx"),
    Package("onnxruntime", "onnxruntime", "checking and running ONNX files, the latter without Detectron2"),
    Package("playwright", "playwright", "the tests of the html page in a browser"),
    Package("pytest", "pytest", "running the tests"),
)
# Program names of browsers that playwright can drive; SOHES_BROWSER names another.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Pretrained backbones used by the configs: that of SOHES, and a small one.
HUB_MODELS = ("vit_base_patch8_224.dino", "vit_small_patch16_224.dino")


def check_python() -> Iterator[Finding]:
    """Python version and machine."""
    detail = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    yield Finding("Python", OK, detail)
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / _GIB:.0f} GiB memory"
    yield Finding("CPU", OK, f"{available_cores()} cores{memory}")
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total
        if shared < _GIB:
            yield Finding(
                "shared memory",
                OPTIONAL,
                f"{shared / _GIB:.2f} GiB in /dev/shm, through which the data loader's workers send images",
                "start the container with --shm-size 8g, or train with DATALOADER.NUM_WORKERS 0",
            )


def check_required() -> Iterator[Finding]:
    """Required libraries."""
    for package in REQUIRED:
        _, problem = try_import(package.module)
        if problem:
            yield Finding(package.pip, MISSING, problem, f"{_PIP} {package.pip}")
        else:
            yield Finding(package.pip, OK, version_of(package))


def check_detectron2() -> Iterator[Finding]:
    """Detectron2 and this package."""
    package, problem = try_import("sohes_d2")
    if problem:
        yield Finding("sohes_d2", MISSING, problem, f"{_PIP} -e . in the clone of this project")
        return
    yield Finding("sohes_d2", OK, f"{package.__version__} at {os.path.dirname(package.__file__)}")
    compat, _ = try_import("sohes_d2.compat")
    try:
        compat.require()
    except ImportError as error:
        yield Finding("Detectron2", MISSING, str(error))
        return
    _, problem = try_import("detectron2.modeling")
    if problem:
        yield Finding("Detectron2", MISSING, problem, "sohes setup --force")
        return
    # Compiled ops are needed only by some models of Detectron2, not by those of this project.
    yield Finding("Detectron2", OK, compat.detectron2_flavour().removeprefix("detectron2 "))


def check_devices() -> Iterator[Finding]:
    """Devices other than the CPU."""
    torch, problem = try_import("torch")
    if problem:
        return
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(k)
            detail = f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, CUDA {torch.version.cuda}"
            yield Finding(f"GPU cuda:{k}", OK, detail)
    elif torch.backends.mps.is_available():
        yield Finding("GPU", OK, "mps (Apple); select it with --device mps or MODEL.DEVICE mps")
    elif torch.version.cuda:
        remedy = "check the driver with nvidia-smi" if shutil.which("nvidia-smi") else ""
        detail = f"none available to torch {torch.__version__}; models run on the CPU"
        yield Finding("GPU", OPTIONAL, detail, remedy)
    else:
        remedy = "install a torch with CUDA: https://pytorch.org/get-started" if shutil.which("nvidia-smi") else ""
        detail = f"torch {torch.__version__} is built without CUDA; models run on the CPU"
        yield Finding("GPU", OPTIONAL, detail, remedy)


def check_extras() -> Iterator[Finding]:
    """Optional libraries."""
    for package in EXTRAS:
        _, problem = try_import(package.module)
        if not problem:
            yield Finding(package.pip, OK, f"{version_of(package)}, for {package.purpose}")
        elif importlib.util.find_spec(package.module.partition(".")[0]) is None:
            yield Finding(package.pip, OPTIONAL, f"for {package.purpose}", f"{_PIP} {package.pip}")
        else:
            remedy = f"{_PIP} --force-reinstall --no-deps {package.pip}"
            yield Finding(package.pip, OPTIONAL, f"broken ({problem}), for {package.purpose}", remedy)


def find_browser() -> str | None:
    """Path of Chromium or Chrome for the tests of the html page: ``SOHES_BROWSER``, else one on the PATH."""
    named = os.environ.get("SOHES_BROWSER")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


def check_browser() -> Iterator[Finding]:
    """A browser for the tests of the html page; the page itself works in any."""
    purpose = "for the tests of the html page"
    path = find_browser()
    if path:
        yield Finding("Chromium", OK, f"{path}, {purpose}")
        return
    named = os.environ.get("SOHES_BROWSER")
    if named:
        remedy = "set SOHES_BROWSER to the program of a Chromium or Chrome, or unset it to search the PATH"
        yield Finding("Chromium", OPTIONAL, f"SOHES_BROWSER is {named}, which cannot be run; {purpose}", remedy)
        return
    remedy = "apt-get install chromium on Debian, or any Chromium or Chrome, named by SOHES_BROWSER if not on the PATH"
    yield Finding("Chromium", OPTIONAL, purpose, remedy)


def check_weights() -> Iterator[Finding]:
    """Pretrained backbones in the local cache; no network access."""
    weights, problem = try_import("sohes_d2.weights")
    if problem:
        return
    for name in HUB_MODELS:
        path = weights.hub_cached_file(name)
        if path:
            yield Finding(name, OK, f"cached at {path}")
            continue
        remedy = (
            f"hf download timm/{name} on a machine with a network, or give any file of it: "
            "EXPLORATION.FEATURES.WEIGHTS FILE for phase 1, MODEL.VIT.WEIGHTS FILE to train"
        )
        detail = "not in the local cache: phase 1 works without (joint), training downloads it"
        yield Finding(name, OPTIONAL, detail, remedy)


def check_phases() -> Iterator[Finding]:
    """Run each phase with a tiny model."""
    probes, problem = try_import("sohes_d2.cli.probes")
    if problem:
        for phase in ("phase 1", "phase 2", "phase 3"):
            yield Finding(phase, MISSING, f"cannot be tried: {problem}", "see the lines with !! above")
        return
    yield _run("phase 1", probes.probe_labeling)
    yield _run("phase 2", probes.probe_training)
    yield _run("phase 3", probes.probe_correction)
    torch, _ = try_import("torch")
    if torch.cuda.is_available():
        yield _run("phase 2 on the GPU", lambda: probes.probe_training("cuda"))
        yield _run("phase 3 on the GPU", lambda: probes.probe_correction("cuda"))


SECTIONS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("Machine", check_python),
    ("Needed", check_required),
    ("Detectron2", check_detectron2),
    ("Devices", check_devices),
    ("Optional", check_extras),
    ("Browser", check_browser),
    ("Pretrained weights", check_weights),
    ("Tried out", check_phases),
)


def try_import(module: str) -> tuple[Any, str]:
    """Import a module; returns it and "", or None and a one-line reason."""
    try:
        return importlib.import_module(module), ""
    except Exception as error:  # broken libraries may raise anything
        return None, _one_line(error)


def version_of(package: Package) -> str:
    """The installed version, from pip's metadata, else from the module."""
    try:
        return metadata.version(package.pip)
    except metadata.PackageNotFoundError:  # cv2 is provided by four packages
        module = sys.modules.get(package.module.partition(".")[0])
        return str(getattr(module, "__version__", "of unknown version"))


def _run(name: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(name, OK, probe())
    except Exception as error:  # any problem of the installation
        remedy = "see the lines with !! above; if there are none, please report this with the whole output"
        return Finding(name, MISSING, f"does not run: {_one_line(error)}", remedy)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def _lines(finding: Finding, width: int) -> list[str]:
    head = f"  {finding.state}  {finding.name:<26} "
    # do not break words, so that commands and paths can be copied
    wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
    wrap.initial_indent, wrap.subsequent_indent = head, " " * 33
    lines = wrap.wrap(finding.detail)
    if finding.remedy:
        wrap.initial_indent, wrap.subsequent_indent = " " * 33 + "-> ", " " * 36
        lines += wrap.wrap(finding.remedy)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the report; returns the exit code."""
    tool_parser(__doc__, prog="sohes doctor").parse_args(arguments)
    # triggered by Detectron2; within the report it would look like a finding
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 140))
    failed = []
    for title, check in SECTIONS:
        print(f"\n{title}", flush=True)
        for finding in check():
            print("\n".join(_lines(finding, width)), flush=True)
            if finding.state == MISSING:
                failed.append(finding.name)
    if failed:
        print(f"\nPhases 1 to 3 cannot run here: {', '.join(failed)}.")
        print("Follow the arrows from the top; or `make env` in a clone builds an environment of tested versions.")
        return 1
    print("\nPhases 1 to 3 can run here.")
    return 0
