"""Label an image list: plan the run, execute it, write label files and reports."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..data.sources import ImageList
from ..errors import InputError
from ..labels.index import ShardIndex, load_index, read_info
from ..labels.shards import MAX_IMAGES_PER_SHARD, merge_shards, read_skipped
from ..structures.files import FolderLock, write_json
from .executors import run_in_process, run_on_device, run_on_workers
from .ray_executor import run_on_ray
from .run_folder import RunFolder, check_same_config, is_sound
from .steps import STAGES, LabelerFactory, UnitResult
from .summary import Progress, label_statistics, machine_facts, package_versions, speed
from .units import ShardLayout, WorkUnit

logger = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_SKIPPED = 3


@dataclass(frozen=True)
class LabelingOptions:
    """Options of a labeling run.

    Attributes:
        workers: number of worker processes; 0 runs everything in this process. Does not change the output.
        batch_size: images of equal size per batch on a device. Extractors on the CPU process one image at a time.
        job, jobs: `--shard I/N`: this job writes every N-th shard, starting with the I-th (from 0).
        images_per_shard: maximum number of images in a shard.
        resume, overwrite: continue or replace an existing output.
        engine: "local" or "ray".
        ray_address: see `run_on_ray`.
        terminal: progress as a bar (True) or as log lines (False); None: a bar if stderr is a terminal.
    """

    workers: int = 0
    batch_size: int = 8
    job: int = 0
    jobs: int = 1
    images_per_shard: int = MAX_IMAGES_PER_SHARD
    resume: bool = False
    overwrite: bool = False
    engine: str = "local"
    ray_address: str | None = None
    terminal: bool | None = None

    def __post_init__(self) -> None:
        if self.workers < 0 or self.batch_size < 1:
            raise InputError(
                f"--workers must be at least 0 and --batch-size at least 1, got {self.workers}, {self.batch_size}"
            )
        if not 0 <= self.job < self.jobs:
            raise InputError(f"--shard I/N needs 0 <= I < N, got {self.job}/{self.jobs}")
        if not 1 <= self.images_per_shard <= MAX_IMAGES_PER_SHARD:
            raise InputError(f"--images-per-shard must be 1 to {MAX_IMAGES_PER_SHARD}, got {self.images_per_shard}")
        if self.resume and self.overwrite:
            raise InputError("--resume continues the output and --overwrite replaces it; choose one")
        if self.engine not in ("local", "ray"):
            raise InputError(f"--engine is local or ray, got {self.engine!r}")


@dataclass(frozen=True)
class RunReport:
    """Result of a run: the label file or folder, the skipped images, the contents of summary.json."""

    output: str
    skipped: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 if every image of this job has labels, 3 if some were skipped."""
        return EXIT_SKIPPED if self.skipped else EXIT_DONE


def run_labeling(images: ImageList, output: str, make_labeler: LabelerFactory, options: LabelingOptions) -> RunReport:
    """Label images into one COCO file (``output`` ends in `.json`) or a folder of shards.

    `errors.json` (skipped images with reasons) and `summary.json` are written beside the labels. A single-file run
    works in `<output>.parts/`, which is removed when the file is complete.

    Args:
        images: images to label.
        output: output file or folder.
        make_labeler: builds a `PseudoLabeler`, here and in worker processes.
        options: see `LabelingOptions`.

    Raises:
        InputError: the output exists, or was made with another configuration.
        FolderBusyError: another process writes to the folder; only different jobs of one --shard split may do so.
        OutputError: a file cannot be written; finished work is kept.
    """
    single = output.lower().endswith(".json")
    if single and options.jobs > 1:
        raise InputError("--shard writes a folder of shards; give a folder as --output and join it with sohes merge")
    if single and os.path.isdir(output):
        raise InputError(f"--output {output!r} is a folder; its name must not end in .json then")
    if not single and os.path.isfile(output):
        raise InputError(f"--output {output!r} is a file; name a folder, or a file ending in .json")
    labeler = build_labeler(make_labeler)
    make_labeler = make_labeler.pinned(labeler)
    # On the CPU, results do not depend on the batch, and single images balance the load of the workers best.
    batch_size = 1 if labeler.extractor.on_host else options.batch_size
    info = describe_run(labeler, images, batch_size)
    parts = output + ".parts" if single else output
    lock = FolderLock(parts, options.job, options.jobs)  # before anything is deleted or written
    try:
        return _label(images, output, parts, labeler, make_labeler, options, info, batch_size)
    finally:
        lock.release(remove=single)


def _label(
    images: ImageList,
    output: str,
    parts: str,
    labeler: Any,
    make_labeler: LabelerFactory,
    options: LabelingOptions,
    info: dict[str, Any],
    batch_size: int,
) -> RunReport:
    """Run the labeling; the caller holds the lock of the folder."""
    single = parts != output
    layout = ShardLayout.plan(len(images), options.job, options.jobs, options.images_per_shard)
    folder = RunFolder(parts, images, layout, info, batch_size)
    is_finished = single and _is_finished(output, info, options)
    if is_finished and load_index(output).photos is None and folder.label_files():
        is_finished = False  # killed before the index was written: the shards are merged again
    if is_finished:
        outdated = folder.outdated(output)
        if not outdated:
            shutil.rmtree(parts, ignore_errors=True)
            logger.info("%s is already complete", output)
            return RunReport(output, read_skipped(output), label_statistics([load_index(output)]))
        folder.open(resume=False, overwrite=True)
        folder.take_back(output, outdated)
    else:
        folder.open(options.resume, options.overwrite)
    session = _Session(folder, labeler, make_labeler, options, batch_size)
    session.run()
    folder.write_index()
    indices = [load_index(path) for path in folder.label_files()]
    summary = session.summary(indices)
    skipped = folder.skipped()
    if not single:
        write_json(folder.report_path("errors"), skipped)
        write_json(folder.report_path("summary"), summary)
        return RunReport(output, skipped, summary)
    # The label file is written last: if it exists, the run and its reports are complete.
    beside = os.path.dirname(output)
    write_json(os.path.join(beside, "errors.json"), skipped)
    write_json(os.path.join(beside, "summary.json"), summary)
    merge_shards(parts, output)
    shutil.rmtree(parts)
    return RunReport(output, skipped, summary)


def build_labeler(make_labeler: LabelerFactory) -> Any:
    """Build the labeler with its extractor.

    Raises:
        InputError: a package or weights are missing, or a setting is invalid.
    """
    try:
        return make_labeler(True)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"the labeler cannot be built: {error}") from error


def describe_run(labeler: Any, images: ImageList, batch_size: int) -> dict[str, Any]:
    """The COCO `info`: exactly what the labels depend on, so that equal labels give byte-identical files."""
    return {
        "description": "Class-agnostic entities and their hierarchy (parent_id), made by SOHES-D2 without human labels",
        "sohes_d2": __version__,
        "config": labeler.describe(),
        "images": images.describe(),
        "batch_size": batch_size,
        "versions": package_versions(),
    }


class _Session:
    """One invocation of a run: executes the remaining units and measures the time."""

    def __init__(
        self, folder: RunFolder, labeler: Any, make_labeler: LabelerFactory, options: LabelingOptions, batch_size: int
    ):
        self._folder = folder
        self._labeler = labeler
        self._make_labeler = make_labeler
        self._options = options
        self._batch_size = batch_size
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._images = 0
        self._wall = 0.0

    def run(self) -> None:
        start = time.perf_counter()
        layout = self._folder.layout
        total = sum(len(layout.positions(shard)) for shard in layout.own_shards())
        progress = Progress(total, self._options.terminal)
        results = self._execute(self._folder.pending(progress.count_before))
        try:
            for result in results:
                self._keep(result)
                masks = sum(image.masks for image in result.results)
                progress.count(len(result.results), masks, sum(image.skipped is not None for image in result.results))
        finally:
            results.close()  # stops the workers before the journals are closed
            self._folder.close()
            progress.close()
            self._wall = time.perf_counter() - start

    def summary(self, indices: list[ShardIndex]) -> dict[str, Any]:
        return {
            **label_statistics(indices),
            "this_run": speed(self._images, self._wall, self._seconds),
            "workers": self._options.workers,
            "engine": self._options.engine,
            "info": self._folder.info,
            "machine": machine_facts(self._labeler.extractor.device),
        }

    def _execute(self, units: Iterable[WorkUnit]) -> Generator[UnitResult, None, None]:
        options, extractor = self._options, self._labeler.extractor
        if options.engine == "ray":
            gpus = 1.0 if extractor.device.type == "cuda" else 0.0
            return run_on_ray(units, self._make_labeler, options.ray_address, gpus)
        if not extractor.on_host and self._labeler.needs_extractor_to_finish and options.workers:
            logger.info("crops need the device again, so this process does all work; --workers is ignored")
        if options.workers == 0 or (not extractor.on_host and self._labeler.needs_extractor_to_finish):
            return run_in_process(units, self._labeler)
        if extractor.on_host:
            return run_on_workers(units, self._make_labeler, options.workers)
        return run_on_device(units, self._labeler, self._make_labeler, options.workers, self._batch_size)

    def _keep(self, result: UnitResult) -> None:
        start = time.perf_counter()
        self._folder.add(result)
        self._seconds["write"] += time.perf_counter() - start
        self._images += len(result.results)
        for stage, seconds in result.seconds.items():
            self._seconds[stage] += seconds
        for image in result.results:
            if image.skipped is not None:
                logger.warning(
                    "skipped %a (%s): %s", image.skipped["file_name"], image.skipped["step"], image.skipped["reason"]
                )
                if image.trace:
                    logger.warning("%s", image.trace)


def _is_finished(output: str, info: dict[str, Any], options: LabelingOptions) -> bool:
    """Whether a single-file run is complete. Raises InputError if its output exists without --resume or --overwrite."""
    if not os.path.exists(output):
        return False
    if options.overwrite:
        os.unlink(output)
        return False
    if not options.resume:
        raise InputError(f"{output!r} exists; continue it with --resume, or replace it with --overwrite")
    if not is_sound(output):
        return False
    check_same_config(output, read_info(output), info)
    return True
