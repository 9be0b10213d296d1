"""`sohes doctor`: reports what is installed, what is missing and how to fix it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sohes_d2.cli import doctor
from sohes_d2.cli.doctor import MISSING, OK, OPTIONAL, Finding, Package
from sohes_d2.errors import SOHESError

REPOSITORY = Path(__file__).parents[2]


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_a_complete_installation(capsys):
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert "Phases 1 to 3 can run here." in printed and "!!" not in printed
    assert f"torch                      {torch.__version__.partition('+')[0]}" in printed
    words = " ".join(printed.split())  # undo line wrapping, which depends on the terminal
    assert "masks found in a test picture" in words
    assert "a training step and a prediction of a tiny model ran on cpu" in words
    assert "labels of a tiny teacher, and its prediction, ran on cpu" in words


def test_missing_parts_are_reported_with_a_remedy(monkeypatch, capsys):
    missing = {"timm", "cv2", "onnxruntime", "detectron2.modeling", "sohes_d2.cli.probes"}
    broken = {"ray": AttributeError("no attribute 'float'")}
    real = doctor.importlib.import_module

    def import_module(name):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        if name in broken:
            raise broken[name]
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    find_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: None if name in missing else object() if name == "ray" else find_spec(name),
    )
    required = by_name(doctor.check_required())
    assert required["timm"].state == MISSING and required["timm"].remedy.endswith("-m pip install timm")
    assert required["opencv-python-headless"].remedy.endswith("install opencv-python-headless")
    assert required["numpy"].state == OK
    extras = by_name(doctor.check_extras())
    assert extras["onnxruntime"].state == OPTIONAL and extras["onnxruntime"].remedy.endswith("install onnxruntime")
    assert extras["ray"].state == OPTIONAL and "broken (AttributeError" in extras["ray"].detail
    assert "--force-reinstall" in extras["ray"].remedy
    assert by_name(doctor.check_detectron2())["Detectron2"].remedy == "sohes setup --force"
    assert [finding.state for finding in doctor.check_phases()] == [MISSING, MISSING, MISSING]
    assert doctor.main([]) == 1
    failed = "timm, opencv-python-headless, Detectron2, phase 1, phase 2, phase 3"
    assert f"cannot run here: {failed}." in capsys.readouterr().out


def test_a_failing_phase_is_reported(monkeypatch):
    from sohes_d2.cli import probes

    monkeypatch.setattr(probes, "probe_labeling", lambda: (_ for _ in ()).throw(RuntimeError("bad\n  driver")))
    found = by_name(doctor.check_phases())
    assert found["phase 1"].state == MISSING and found["phase 1"].detail == "does not run: RuntimeError: bad driver"
    assert found["phase 2"].state == found["phase 3"].state == OK


def test_probes_detect_wrong_results(monkeypatch):
    from sohes_d2.cli import probes
    from sohes_d2.modeling.criterion import SetCriterion
    from sohes_d2.structures.forest import Forest

    forward = SetCriterion.forward
    monkeypatch.setattr(
        SetCriterion, "forward", lambda self, *a: {k: v * float("nan") for k, v in forward(self, *a).items()}
    )
    for probe in (probes.probe_training, probes.probe_correction):
        with pytest.raises(SOHESError, match="not finite"):
            probe()
    monkeypatch.setattr(SetCriterion, "forward", forward)
    monkeypatch.setattr(probes.TeacherStatistics, "from_sums", lambda sums: SimpleNamespace(labels=0.0))
    with pytest.raises(SOHESError, match="no pseudo-label"):
        probes.probe_correction()
    monkeypatch.setattr(probes.PseudoLabeler, "generate", lambda self, image: Forest([], [], image.shape[:2]))
    with pytest.raises(SOHESError, match="no mask"):
        probes.probe_labeling()


def test_cached_weights_are_found_and_missing_ones_explained(monkeypatch):
    from sohes_d2 import weights

    monkeypatch.setattr(weights, "hub_cached_file", lambda name: "/cache/x" if "base" in name else None)
    base, small = doctor.check_weights()
    assert (base.state, base.detail) == (OK, "cached at /cache/x")
    assert small.state == OPTIONAL and "hf download timm/vit_small_patch16_224.dino" in small.remedy


def test_a_browser_is_found_by_name_or_environment_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("SOHES_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor.check_browser()
    assert found.state == OPTIONAL and found.remedy.startswith("apt-get install chromium")
    browser = tmp_path / "google-chrome"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    (found,) = doctor.check_browser()
    assert found.state == OK and found.detail.startswith(f"{browser}, ")
    other = tmp_path / "mine"
    shutil.copy(browser, other)
    monkeypatch.setenv("SOHES_BROWSER", str(other))
    assert doctor.find_browser() == str(other)
    other.unlink()
    (found,) = doctor.check_browser()  # a missing browser is reported, not replaced
    assert found.state == OPTIONAL and str(other) in found.detail and "SOHES_BROWSER" in found.remedy


def test_every_optional_library_is_listed():
    names = {package.pip for package in doctor.EXTRAS}
    assert {"onnx", "onnxscript", "onnxruntime", "playwright", "faster-coco-eval", "ray"} <= names


@pytest.mark.parametrize(
    ("cuda_build", "has_driver", "words"),
    [("13.0", True, "check the driver"), (None, True, "install a torch with CUDA"), (None, False, "")],
)
def test_a_machine_without_a_usable_gpu(monkeypatch, cuda_build, has_driver, words):
    fake = SimpleNamespace(
        __version__="9.9",
        cuda=SimpleNamespace(is_available=lambda: False),
        version=SimpleNamespace(cuda=cuda_build),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
    )
    monkeypatch.setattr(doctor, "try_import", lambda name: (fake, ""))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if has_driver else None)
    (found,) = doctor.check_devices()
    assert found.state == OPTIONAL and "torch 9.9" in found.detail and found.remedy.startswith(words)
    assert bool(found.remedy) == bool(words)


def test_lines_do_not_break_commands_and_paths():
    path = "/a-very-long-path/" + "with-hyphens/" * 12
    lines = doctor._lines(Finding("x", OK, f"at {path}", "do this and that " * 10), 80)
    assert any(path in line for line in lines)
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert doctor.version_of(Package("sys", "no-such-package")) == "of unknown version"


def test_it_runs_without_any_library():
    # -S: without site-packages, as in a clone before any installation
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-S", "-m", "sohes_d2", "doctor"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    text = " ".join(result.stdout.split())  # line wrapping depends on the interpreter's path
    assert "!! torch" in text and "-m pip install torch" in text
    assert "Detectron2 is not installed" in text and "sohes setup" in text
