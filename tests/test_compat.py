"""`sohes_d2.compat`: in this process with the installed Detectron2, in new ones with stubs for it."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sohes_d2 import compat

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.collect_env import collect_env_info

REPOSITORY = Path(__file__).parents[1]
COMPAT_FILE = REPOSITORY / "sohes_d2" / "compat.py"
# compat.py by itself: the package around it needs a real Detectron2.
LOAD_COMPAT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("compat", {str(COMPAT_FILE)!r})
compat = sys.modules["compat"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""


def run(code: str, folder: Path) -> str:
    """Standard output of `code` in a fresh interpreter started in `folder`; asserts that it succeeds."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def write_detectron2(folder: Path, files: dict[str, str]) -> None:
    """Write a stub of the package `detectron2` to `folder`."""
    for name, text in {"__init__.py": "__version__ = '0.6'", **files}.items():
        path = folder / "detectron2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


# ---------------------------------------------------------------------------------------------------- import orders


def test_import_after_failed_attempts(tmp_path):
    """Imports of the real Detectron2, tried before with or without success, work after `import sohes_d2`."""
    output = run(
        f"""
        import sys
        sys.path.insert(0, {str(REPOSITORY)!r})
        from detectron2.config import get_cfg
        attempts = [
            "from detectron2.engine import DefaultTrainer",
            "from detectron2.layers import ROIAlign",
            "from detectron2 import model_zoo",
            "from detectron2.utils.visualizer import Visualizer",
        ]
        for attempt in attempts:
            try:
                exec(attempt, {{}})
            except (ImportError, AttributeError):
                pass
        import sohes_d2
        for attempt in attempts:
            exec(attempt)
        import detectron2.config, detectron2.layers.wrappers
        print(detectron2.config.get_cfg is get_cfg, detectron2.layers.wrappers.cat.__name__)
        """,
        tmp_path,
    )
    assert output == "True cat"


def test_bare_detectron2_first(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import detectron2, sohes_d2; import detectron2.layers"
    run(code, tmp_path)


def test_half_imported_modules_are_imported_again(tmp_path):
    write_detectron2(
        tmp_path,
        {
            "layers/__init__.py": "from . import fine, broken",
            "layers/fine.py": "",
            "layers/broken.py": "import sys; sys.mended",
        },
    )
    output = run(
        LOAD_COMPAT
        + """
try:
    import detectron2.layers
except AttributeError:
    print("detectron2.layers" in sys.modules, "detectron2.layers.fine" in sys.modules)
compat.apply()
print("detectron2.layers.fine" in sys.modules)
sys.mended = True
import detectron2.layers
print(detectron2.layers.fine.__name__)
""",
        tmp_path,
    )
    assert output.splitlines() == ["False True", "False", "detectron2.layers.fine"]


def test_half_imported_and_still_in_use(tmp_path):
    write_detectron2(
        tmp_path,
        {
            "config.py": "",
            "layers/__init__.py": "from . import fine; import detectron2.shared; import sys; sys.mended",
            "layers/fine.py": "class Conv2d: pass",
            "shared.py": "from detectron2.layers.fine import Conv2d",
        },
    )
    output = run(
        LOAD_COMPAT
        + """
try:
    import detectron2.layers
except AttributeError:
    pass
try:
    compat.apply()
except ImportError as error:
    print(error)
""",
        tmp_path,
    )
    assert "an earlier import of detectron2.layers failed" in output
    assert "detectron2.shared.Conv2d" in output
    assert "Write `import sohes_d2` before the first import of detectron2." in output


def test_apply_twice_changes_nothing():
    before = list(sys.meta_path)
    compat.apply()
    assert sys.meta_path == before


def test_not_installed(tmp_path):
    code = LOAD_COMPAT + "sys.path[:] = []\ncompat.apply()\n"
    code += "try: compat.require()\nexcept ImportError as error: print(error)"
    assert "sohes setup" in run(code, tmp_path)


def test_folder_of_the_same_name(tmp_path):
    (tmp_path / "detectron2").mkdir()
    code = LOAD_COMPAT + "sys.path[:] = ['']\ncompat.apply()\n"
    code += "try: compat.require()\nexcept ImportError as error: print(error)"
    output = run(code, tmp_path)
    assert str(tmp_path / "detectron2") in output
    assert "without __init__.py" in output


# -------------------------------------------------------------------------------------------- missing modules and stubs


def test_release_without_compiled_ops(tmp_path):
    write_detectron2(tmp_path, {"layers.py": "from detectron2 import _C"})
    output = run(
        LOAD_COMPAT
        + """
compat.apply()
from detectron2.layers import _C
print(compat.has_compiled_ops(), _C.has_cuda(), hasattr(_C, "__path__"))
op = _C.deform_conv_forward
try:
    op(1, 2)
except ImportError as error:
    print(error)
""",
        tmp_path,
    )
    facts, message = output.splitlines()
    assert facts == "False False False"
    assert message.startswith("detectron2._C.deform_conv_forward was called")


def test_main_without_compiled_ops_keeps_its_own_fallback(tmp_path):
    write_detectron2(tmp_path, {"utils/develop.py": ""})
    code = LOAD_COMPAT + "compat.apply()\ntry: import detectron2._C\nexcept ImportError: print('absent')"
    assert run(code, tmp_path) == "absent"


def test_compiled_ops_are_not_patched(tmp_path):
    write_detectron2(tmp_path, {"_C.py": "real = True"})
    code = LOAD_COMPAT + "compat.apply()\nimport detectron2._C as c\nprint(c.real, compat.has_compiled_ops())"
    assert run(code, tmp_path) == "True True"


def test_compiled_ops_that_do_not_load(tmp_path):
    write_detectron2(tmp_path, {"_C.py": "raise ImportError('undefined symbol')"})
    code = LOAD_COMPAT + "compat.apply()\nprint(compat.has_compiled_ops(), compat.detectron2_flavour())"
    assert run(code, tmp_path).startswith(
        "False detectron2 0.6 (release, compiled ops that do not load with this torch) at "
    )


@pytest.mark.skipif("official main" in compat.detectron2_flavour(), reason="main does not use the removed names")
def test_removed_names_are_restored():
    assert np.dtype(np.float) == np.float64  # noqa: NPY001
    assert np.dtype(np.int) == np.int64  # noqa: NPY001
    assert np.dtype(np.bool) == np.bool_
    assert Image.LINEAR == Image.Resampling.BILINEAR


def test_model_zoo_finds_its_files_without_leaking_the_stub():
    from detectron2 import model_zoo

    config_file = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert Path(config_file).is_file()
    loaded = sys.modules.get("pkg_resources")
    assert loaded is None or hasattr(loaded, "WorkingSet")  # the real module of older setuptools


def test_descriptions():
    flavour = compat.detectron2_flavour()
    assert flavour.startswith("detectron2 0.6 (")
    assert ("no compiled ops" in flavour) != compat.has_compiled_ops()
    assert "Compiler" in collect_env_info()


def test_loaders_replace_images_refused_by_a_mapper():
    dataset = MapDataset([10, 11, 12, 13], lambda value: None if value == 11 else value)
    assert [dataset[i] for i in (0, 2, 3)] == [10, 12, 13]
    assert dataset[1] in (10, 12, 13)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[1] in (10, 12, 13)


# ------------------------------------------------------------------------------------------- training and checkpoints


@pytest.fixture
def tiny_dataset(tmp_path):
    """Two noise images, each with a bright rectangle, registered as a data set; yields its name."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in (1, 2):
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        pixels[10:40, 20:50] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        box = {"bbox": [20, 10, 30, 30], "area": 900, "segmentation": [[20, 10, 50, 10, 50, 40, 20, 40]]}
        annotations.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, **box})
    content = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "entity"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    register_coco_instances("compat_tiny", {}, str(tmp_path / "labels.json"), str(tmp_path))
    yield "compat_tiny"
    DatasetCatalog.remove("compat_tiny")
    MetadataCatalog.remove("compat_tiny")


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def test_train_evaluate_and_resume(tiny_dataset, tmp_path):
    """A tiny Mask R-CNN with Detectron2's own trainer, mapper, evaluator and checkpointer."""
    from detectron2 import model_zoo

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path / "run"), "SEED", 1]
        + ["DATASETS.TRAIN", (tiny_dataset,), "DATASETS.TEST", (tiny_dataset,), "DATALOADER.NUM_WORKERS", 0]
        + ["INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MIN_SIZE_TEST", 48, "MODEL.ROI_HEADS.NUM_CLASSES", 1]
        + ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
        + ["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16]
        + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 1e-5, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (1,)]
    )
    Path(cfg.OUTPUT_DIR).mkdir()
    first = Trainer(cfg)
    first.resume_or_load(resume=False)
    first.train()
    results = Trainer.test(cfg, first.model)
    assert set(results) == {"bbox", "segm"}
    assert 0 <= results["bbox"]["AP50"] <= 100

    checkpoint = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 1

    cfg.SOLVER.MAX_ITER = 3
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    for ours, theirs in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(ours, theirs)
    momentum = [state["momentum_buffer"] for state in first.optimizer.state_dict()["state"].values()]
    resumed = [state["momentum_buffer"] for state in second.optimizer.state_dict()["state"].values()]
    assert len(momentum) == len(resumed) > 0
    assert all(torch.equal(a, b) for a, b in zip(momentum, resumed))
    second.train()
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == 2


class Payload:
    """Unpickling it calls a function, as in a malicious checkpoint."""

    def __reduce__(self):
        return (print, ("executed",))


def test_checkpoints_cannot_execute_code(tmp_path, capsys):
    torch.save({"model": {}, "extra": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        DetectionCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "evil.pth"))
    assert "executed" not in capsys.readouterr().out


def test_torchs_own_schedulers_are_checkpointed():
    import torch

    from detectron2.engine.hooks import LRScheduler

    def hook():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, LRScheduler(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5))

    optimizer, saved = hook()
    for _ in range(3):
        optimizer.step()
        saved.scheduler.step()
    _, resumed = hook()
    resumed.load_state_dict(saved.state_dict())
    assert resumed.scheduler.last_epoch == 3
    assert resumed.scheduler.get_last_lr() == [0.125]
