"""Stop a training at a file operation, resume it, and compare its results with those of an uninterrupted training.

    PYTHONPATH=tests python -m helpers.kill_points FOLDER kill all  # a kill before each operation
    PYTHONPATH=tests python -m helpers.kill_points FOLDER full 0.1 0.5 0.9  # disk full after these fractions of them
    PYTHONPATH=tests python -m helpers.kill_points FOLDER train 100 2 1  # only train, 2 processes with a worker each

The first two print json: operations counted, points tried, and points with different results.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import torch

import sohes_d2  # noqa: F401  (before Detectron2)
from helpers.tiny_training import tiny_cfg, write_scenes
from sohes_d2.cli.runner import make_main
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.engine import training_command
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.structures import files

KILLED = 77
DATASET = "killed_scenes"


def train(args: argparse.Namespace) -> None:
    scenes = Path(args.scenes)
    register_coco_entities(DATASET, str(scenes / "labels.json"), str(scenes / "images"))
    training_command.collect_env_info = lambda: ""  # it takes seconds
    cfg = tiny_cfg(args.output, (DATASET,), (DATASET,), MAX_ITER=args.iterations, CHECKPOINT_PERIOD=2)
    cfg.TEST.EVAL_PERIOD = 4
    cfg.DATALOADER.NUM_WORKERS = args.workers
    cfg.freeze()
    training_command.set_up(cfg, args)
    trainer = SOHESTrainer(cfg)
    trainer.checkpointer.model.backbone.loaded_from = ""
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def run(output: Path, resume: bool, iterations: int = 6, processes: int = 1, workers: int = 0) -> int:
    """Run a training; returns its exit code."""
    args = argparse.Namespace(
        output=str(output),
        scenes=str(output.parent / "scenes"),
        resume=resume,
        iterations=iterations,
        num_gpus=processes,
        workers=workers,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        eval_only=False,
        verbose=False,
        debug=False,
    )

    def command(args: argparse.Namespace) -> int:
        return training_command.run_processes(train, args, "cpu")

    return make_main("train", lambda _: args, command, when_stopped="continue with --resume")()


class Operations:
    """Counts the file operations of the main thread that change files. At operation ``stop_at`` it kills the process,
    or with ``full`` simulates a full disk from there on.
    """

    def __init__(self, stop_at: int | None, full: bool = False):
        self.count = 0
        self._stop_at, self._full = stop_at, full
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
            if half and self._stop_at == self.count:
                write(file, memoryview(data)[:half])
            self._pass()
            return write(file, data)

        os.open, files._RawFile.write = counted_os_open, counted_write

    def _counted(self, function):
        is_open = function.__name__ == "open"
        needs_room = function.__name__ in ("open", "fsync", "mkdir", "write")

        def counted(*args, **kwargs):
            mode = kwargs.get("mode", args[1] if len(args) > 1 else "r")
            if not is_open or (set(str(mode)) & set("wax+") and args[0] != os.devnull):
                self._pass(needs_room)
            return function(*args, **kwargs)

        return counted

    def _pass(self, needs_room: bool = True) -> None:
        if threading.current_thread() is threading.main_thread():
            if self.count == self._stop_at and not self._full:
                os._exit(KILLED)
            self.count += 1
        if self._full and self.count > self._stop_at and needs_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_child(function, *args, errors: Path | None = None) -> int:
    """Call a function in a child process; returns its exit code. Its stderr is written to ``errors``."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(errors or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            code = function(*args)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted_run(output: Path, count_file: Path) -> int:
    operations = Operations(None)
    code = run(output, resume=False)
    count_file.write_text(str(operations.count))
    return code


def stopped_run(output: Path, stop_at: int, full: bool) -> int:
    Operations(stop_at, full)
    return run(output, resume=False)


def outcome(output: Path) -> dict:
    """Results of a training that must not depend on interruptions."""
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


def try_point(folder: Path, point: int, full: bool, expected: dict) -> str:
    """Stop at a point, resume and compare; returns a description of the problem, or ""."""
    output, errors = folder / f"stopped{point}", folder / "errors"
    code = in_child(stopped_run, output, point, full, errors=errors)
    if full and code == 0:  # only TensorBoard and the log were left to write
        return ""
    if code != (1 if full else KILLED):
        return f"point {point}: ended with {code}: {errors.read_text()}"
    lines = errors.read_text().splitlines()
    if full and not (len(lines) == 1 and os.strerror(errno.ENOSPC) in lines[0]):
        return f"point {point}: says {lines}"
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
    folder, what, which = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    if not (folder / "scenes").exists():
        write_scenes(folder / "scenes")
    if what == "train":
        return run(folder / "run", "--resume" in which, *(int(number) for number in which if number != "--resume"))
    code = in_child(counted_run, folder / "whole", folder / "count", errors=folder / "errors")
    if code:
        print(f"the whole training ended with {code}: {(folder / 'errors').read_text()}", file=sys.stderr)
        return 1
    count = int((folder / "count").read_text())
    expected = outcome(folder / "whole")
    points = range(count) if which == ["all"] else sorted({int(float(part) * (count - 1)) for part in which})
    problems = [try_point(folder, point, what == "full", expected) for point in points]
    wrong = [problem for problem in problems if problem]
    print(json.dumps({"operations": count, "points": len(points), "wrong": wrong}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
