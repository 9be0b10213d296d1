"""`sohes train`: a run on the CPU, evaluation, and usage errors."""

import json

import pytest
import torch
from helpers.tiny_training import TinyBackbone, write_scenes

from sohes_d2.cli.train import main as train_net
from sohes_d2.engine.training_command import frozen_config
from sohes_d2.structures.files import FolderLock

from detectron2.data import DatasetCatalog, MetadataCatalog

CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: TinySegmenter
  VIT: {WEIGHTS: random}
INPUT: {FORMAT: RGB, IMAGE_SIZE: 32, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}
DATASETS:
  REGISTER: {cli_scenes: "%(folder)s/labels.json, %(folder)s/images"}
  TRAIN: ("cli_scenes",)
  TEST: ("cli_scenes",)
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2, WARMUP_ITERS: 1, LR_SCHEDULER_NAME: WarmupPolyLR}
TEST: {VISUALIZE: 0}
SEED: 1
OUTPUT_DIR: %(folder)s/output
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "scenes"
    write_scenes(folder, count=3)
    (folder / "c.yaml").write_text(CONFIG % {"folder": folder})
    return folder


@pytest.fixture
def run(folder):
    """Runs the command on the config, then unregisters the data set, as if every run had its own process."""

    def run(*arguments):
        try:
            return train_net(["--config-file", str(folder / "c.yaml"), "--num-gpus", "0", *arguments])
        finally:
            if "cli_scenes" in DatasetCatalog.list():
                DatasetCatalog.remove("cli_scenes")
                MetadataCatalog.remove("cli_scenes")

    return run


def results(folder):
    return json.loads((folder / "output" / "evaluation.json").read_text())


def test_train_then_resume_then_evaluate(run, folder, capfd):
    assert run("SOLVER.MAX_ITER", "2") == 0
    assert results(folder)["iteration"] == 2
    assert run("--resume") == 0
    assert results(folder)["iteration"] == 4
    assert (folder / "output" / "config.yaml").is_file()
    lines = [json.loads(line) for line in (folder / "output" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss_share" in line] == [1, 3]
    trained = results(folder)["results"]["cli_scenes"]["segm"]

    (folder / "output" / "evaluation.json").unlink()
    weights = str(folder / "output" / "model_final.pth")
    capfd.readouterr()
    assert run("--eval-only", "MODEL.WEIGHTS", weights) == 0
    assert "Class-agnostic results in percent" in capfd.readouterr().out
    found = results(folder)
    assert found["unreadable_images"] == {"cli_scenes": 0}
    assert (found["iteration"], found["weights"]) == (4, weights)
    assert found["results"]["cli_scenes"]["segm"] == trained

    expected = trained["AR@1000"]
    for tolerance, code in ((0.1, 0), (-1.0, 1)):
        option = f"[['segm', 'AR@1000', {expected}, {tolerance}]]"
        assert run("--eval-only", "--resume", "TEST.EXPECTED_RESULTS", option) == code


def test_invalid_labels_are_skipped_with_an_exit_code(run, folder, tmp_path, capfd):
    content = json.loads((folder / "labels.json").read_text())
    annotations = content["annotations"]
    annotations.append({**annotations[0], "id": 9001, "segmentation": []})  # a box without a mask
    spec = f"{tmp_path / 'odd.json'}, {folder / 'images'}"
    options = [
        "DATASETS.REGISTER.cli_scenes",
        spec,
        "DATASETS.TEST",
        "()",
        "SOLVER.MAX_ITER",
        "1",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    for segmentation, code in (([[4, 4, 20, 4, 20, 20]], 0), ([[4, 4, 1e7, 4, 20, 20]], 3)):
        (tmp_path / "odd.json").write_text(
            json.dumps(
                {**content, "annotations": [*annotations, {**annotations[0], "id": 9002, "segmentation": segmentation}]}
            )
        )
        capfd.readouterr()
        assert run(*options) == code
        last = capfd.readouterr().err.splitlines()[-1:]
        assert (code == 3) == any("1 x polygon far outside" in line and "odd.json" in line for line in last)


def test_evaluation_of_missing_images_is_refused(run, folder, tmp_path, capfd):
    assert run("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)) == 0
    command = ("--eval-only", "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), "OUTPUT_DIR", str(tmp_path))
    images = sorted((folder / "images").iterdir())
    good = images[0].read_bytes()
    try:
        images[0].write_bytes(good[:50])  # one image of three
        assert run(*command) == 2
        assert "1 images (33%) of the data set 'cli_scenes' cannot be read, listed above" in capfd.readouterr().err
        assert not (tmp_path / "evaluation.json").exists()
        images[0].unlink()
        assert run(*command) == 2
        assert f"for example '{images[0]}'" in capfd.readouterr().err
        assert run(*command, "TEST.MAX_UNREADABLE", "0.5") == 0
        found = json.loads((tmp_path / "evaluation.json").read_text())
        assert found["unreadable_images"] == {"cli_scenes": 1} and "images" not in found["results"]["cli_scenes"]
    finally:
        images[0].write_bytes(good)


def test_output_is_brief_and_the_log_is_complete(run, tmp_path, capfd):
    assert run("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)) == 0
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) + len(printed.err.splitlines()) < 30
    assert "Iteration 1 of 1 done in" in printed.out and "META_ARCHITECTURE" not in printed.out
    log = (tmp_path / "log.txt").read_text()
    assert "META_ARCHITECTURE" in log and "Iteration 1 of 1 done in" in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.MAX_ITR", "3"], "there is no key SOLVER.MAX_ITR. Did you mean SOLVER.MAX_ITER"),
        (["DATASETS.TRAIN", "('cli_scene',)"], "no data set 'cli_scene'. Did you mean cli_scenes"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN names no data set"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST names no data set"),
        (
            ["DATASETS.TEST", "('entities_bsds500_val',)"],
            "make it with `python datasets/prepare_bsds500.py --split val`",
        ),
        (["DATASETS.TRAIN", "('entities_sa1b_train_1000',)"], "prepare_sa1b.py --train 1000"),
        (["DATASETS.REGISTER.x", "only_one_path"], "'x' must be `json, images`"),
        (["MODEL.WEIGHTS", "none.pth"], "checkpoint 'none.pth' does not exist"),
        (["--eval-only", "MODEL.WEIGHTS", "none.pth"], "checkpoint 'none.pth' does not exist"),
        (["--eval-only", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "nowhere"], "pass MODEL.WEIGHTS FILE"),
        (["--eval-only", "MODEL.WEIGHTS", "a.pth", "TEST.MASKS_FROM", "both"], "sohes evaluate"),
        (["OUTPUT_DIR", __file__], "is a file; name a folder"),
        (["SOLVER.OPTIMIZER", "ADAM"], "'ADAM' is not one of ADAMW, SGD"),
    ],
)
def test_errors_are_reported_in_one_line(run, capfd, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run(*arguments) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_output_dir_in_use_is_refused(run, folder, capfd):
    output = folder / "used"
    lock = FolderLock(str(output))
    before = sorted(output.iterdir())
    for more in ([], ["--resume"], ["--eval-only", "MODEL.WEIGHTS", "none.pth"]):
        assert run(*more, "OUTPUT_DIR", str(output)) == 2
        error = capfd.readouterr().err
        assert str(output) in error and "in use" in error and len(error.strip().splitlines()) == 1
        assert sorted(output.iterdir()) == before
    lock.release()


def test_a_config_file_is_required(capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        train_net([])
    assert error.value.code == 2
    assert "arguments are required: --config" in capsys.readouterr().err
    assert train_net(["--config-file", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml' does not exist" in capsys.readouterr().err


def test_training_that_diverges_ends_with_code_1(run, folder, capfd, monkeypatch):
    monkeypatch.setattr(TinyBackbone, "forward", lambda self, x: self.patch_embed(x) * float("nan"))
    assert run("OUTPUT_DIR", str(folder / "diverged")) == 1
    error = capfd.readouterr().err
    assert "training stopped in iteration 0" in error
    assert "no checkpoint yet" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="the config is for CUDA, which is there")
def test_without_a_gpu_the_cpu_is_used(folder):
    assert frozen_config(str(folder / "c.yaml"), [], num_gpus=1).MODEL.DEVICE == "cpu"
