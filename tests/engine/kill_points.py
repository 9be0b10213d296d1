"""Kills a training at a file operation, resumes it, and compares what comes out with an uninterrupted one.

    python tests/engine/kill_points.py FOLDER all
    python tests/engine/kill_points.py FOLDER 0.1 0.5 0.9     # at these parts of its operations

It prints the operations counted, the points tried, and those that ended otherwise, as json. Also to be imported: `run`
trains in this process as tools/train_net.py does.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import sohes_d2  # noqa: F401  (before Detectron2)
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.engine import training_command
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.structures import files
from tiny_training import tiny_cfg, write_scenes

KILLED = 77
DATASET = "killed_scenes"


def prepare(folder: Path) -> None:
    """The scenes to train on, registered in this process."""
    if not (folder / "scenes").exists():
        write_scenes(folder / "scenes")
    register_coco_entities(DATASET, str(folder / "scenes" / "labels.json"), str(folder / "scenes" / "images"))
    training_command.collect_env_info = lambda: ""  # it takes seconds


def train(args: argparse.Namespace) -> None:
    cfg = tiny_cfg(args.output, (DATASET,), (DATASET,), MAX_ITER=args.iterations, CHECKPOINT_PERIOD=2)
    cfg.TEST.EVAL_PERIOD = 4
    cfg.freeze()
    training_command.set_up(cfg, args)
    trainer = SOHESTrainer(cfg)
    trainer.checkpointer.model.backbone.loaded_from = ""
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def run(output: Path, resume: bool, iterations: int = 6, processes: int = 1) -> int:
    """The exit code of a training."""
    args = argparse.Namespace(
        output=str(output),
        resume=resume,
        iterations=iterations,
        num_gpus=processes,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
    )
    return training_command.run_processes("train", train, args, "cpu")


class Operations:
    """Counts the file operations of the main thread that change something, and ends the process before one of them."""

    def __init__(self, kill_at: int | None):
        self.count = 0
        self._kill_at = kill_at
        for module, name in (
            *((os, name) for name in ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "write", "ftruncate")),
            *((builtins, "open"), (io, "open")),
        ):
            setattr(module, name, self._counted(getattr(module, name)))
        os_open, write = os.open, files._RawFile.write

        def counted_os_open(path, flags, *args, **kwargs):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self._pass()
            return os_open(path, flags, *args, **kwargs)

        def counted_write(file, data):
            self._pass()
            half = len(data) // 2
            if half and self._kill_at == self.count:
                write(file, memoryview(data)[:half])
            self._pass()
            return write(file, data)

        os.open, files._RawFile.write = counted_os_open, counted_write

    def _counted(self, function):
        is_open = function.__name__ == "open"

        def counted(*args, **kwargs):
            mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
            if not is_open or set(str(mode)) & set("wax+"):
                self._pass()
            return function(*args, **kwargs)

        return counted

    def _pass(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if self.count == self._kill_at:
            os._exit(KILLED)
        self.count += 1


def in_child(function, *args) -> int:
    """The exit code of a process that calls a function, silently."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            if "VERBOSE" not in os.environ:
                os.dup2(null, 2)
            code = function(*args)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted_run(output: Path, count_file: Path) -> int:
    operations = Operations(None)
    code = run(output, resume=False)
    count_file.write_text(str(operations.count))
    return code


def killed_run(output: Path, kill_at: int) -> int:
    Operations(kill_at)
    return run(output, resume=False)


def outcome(output: Path) -> dict:
    """What a training left that must not depend on interruptions."""
    content = torch.load(output / "model_final.pth", weights_only=False)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {
        "weights": {name: value.numpy().tobytes() for name, value in content["model"].items()},
        "iteration": content["iteration"],
        "last": (output / "last_checkpoint").read_text(),
        "evaluation": json.loads((output / "evaluation.json").read_text()),
        "metrics": bool(lines),
        "left": [name for name in os.listdir(output) if name.endswith(files.TEMPORARY)],
        "config": (output / "config.yaml").read_text().replace(str(output), ""),
    }


def try_point(folder: Path, point: int, expected: dict) -> str:
    """Kill at a point, resume, compare; "" or what is wrong."""
    output = folder / f"killed{point}"
    code = in_child(killed_run, output, point)
    if code != KILLED:
        return f"point {point}: ended with {code} instead of being killed"
    code = in_child(run, output, True)
    if code:
        return f"point {point}: the resumed training ended with {code}"
    try:
        found = outcome(output)
    except (OSError, ValueError, KeyError) as error:
        return f"point {point}: {error!r}"
    shutil.rmtree(output)
    wrong = [key for key in expected if found[key] != expected[key]]
    return f"point {point}: other {', '.join(wrong)}" if wrong else ""


def main() -> int:
    folder, which = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    prepare(folder)
    code = in_child(counted_run, folder / "whole", folder / "count")
    if code:
        print(f"the whole training ended with {code}", file=sys.stderr)
        return 1
    count = int((folder / "count").read_text())
    expected = outcome(folder / "whole")
    points = range(count) if which == ["all"] else sorted({int(float(part) * (count - 1)) for part in which})
    wrong = [problem for point in points if (problem := try_point(folder, point, expected))]
    print(json.dumps({"operations": count, "points": len(points), "wrong": wrong}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
