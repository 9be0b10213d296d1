"""Label an image list: plan the run, execute it, write label files and reports; join the shards of several jobs."""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .. import __version__
from ..data.sources import ImageList
from ..errors import InputError
from ..labels.index import load_index, read_info
from ..labels.shards import MAX_IMAGES_PER_SHARD, list_shards, merge_shards, read_skipped, shard_name
from ..labels.writer import read_json
from ..structures.files import FolderLock, write_json
from .executors import run_on_device, run_on_ray, run_on_workers
from .run_folder import RunFolder, check_same_config, is_sound
from .steps import LabelerFactory, label_unit
from .summary import Progress, label_statistics, machine_facts, package_versions, speed
from .units import STAGES, ShardLayout, UnitResult, WorkUnit

logger = logging.getLogger(__name__)


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
        return 3 if self.skipped else 0

    def write(self, folder: str, suffix: str = "") -> None:
        """Write `errors.json` and `summary.json` to a folder; ``suffix`` is added to their names."""
        write_json(os.path.join(folder, f"errors{suffix}.json"), self.skipped)
        write_json(os.path.join(folder, f"summary{suffix}.json"), self.summary)


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
    if labeler.extractor.on_host:
        # Results do not depend on the batch, and single images balance the load of the workers best.
        options = replace(options, batch_size=1)
    layout = ShardLayout.plan(len(images), options.job, options.jobs, options.images_per_shard)
    parts = output + ".parts" if single else output
    folder = RunFolder(parts, images, layout, describe_run(labeler, images, options.batch_size), options.batch_size)
    lock = FolderLock(parts, options.job, options.jobs)  # before anything is deleted or written
    try:
        if single and _is_finished(output, folder, options):
            outdated = folder.outdated(output)
            if not outdated:
                shutil.rmtree(parts, ignore_errors=True)
                logger.info("%s is already complete", output)
                return RunReport(output, read_skipped(output), label_statistics([load_index(output)]))
            folder.open(resume=False, overwrite=True)
            folder.take_back(output, outdated)
        else:
            folder.open(options.resume, options.overwrite)
        this_run = _label(folder, labeler, make_labeler, options)
        folder.write_index()
        files = folder.label_files()
        summary = {
            **label_statistics([load_index(path) for path in files]),
            "this_run": this_run,
            "workers": options.workers,
            "engine": options.engine,
            "info": folder.info,
            "machine": machine_facts(labeler.extractor.device),
        }
        report = RunReport(output, _skipped(files), summary)
        if single:
            report.write(os.path.dirname(output))
            merge_shards(parts, output)  # written last: if it exists, the run and its reports are complete
            shutil.rmtree(parts)
        else:
            report.write(output, f"-{options.job}-of-{options.jobs}" if options.jobs > 1 else "")
        return report
    finally:
        lock.release(remove=single)


def join_folder(folder: str, output: str, allow_incomplete: bool = False, overwrite: bool = False) -> RunReport:
    """Join a folder of shards into the COCO file that a single-file run would write, with reports beside it.

    Args:
        folder: output folder of `run_labeling`, of one or several jobs.
        output: output file, ending in `.json`.
        allow_incomplete: join the existing shards even if some are missing.
        overwrite: replace an existing file.

    Raises:
        InputError: the output exists, or does not end in `.json`.
        InputError, CorruptFileError: see `merge_shards`.
    """
    if not output.lower().endswith(".json"):
        raise InputError(f"the output {output!r} must end in .json")
    if os.path.exists(output) and not overwrite:
        raise InputError(f"{output!r} exists; replace it with --overwrite")
    report_folder = os.path.dirname(output)
    os.makedirs(report_folder or os.curdir, exist_ok=True)
    indices = merge_shards(folder, output, allow_incomplete)
    skipped = _skipped(os.path.join(folder, shard_name(shard)) for shard in list_shards(folder))
    report = RunReport(output, skipped, {**label_statistics(indices), "jobs": _job_speeds(folder)})
    report.write(report_folder)
    return report


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


def _label(folder: RunFolder, labeler: Any, make_labeler: LabelerFactory, options: LabelingOptions) -> dict[str, Any]:
    """Label the remaining units of a folder; returns the speed, see `speed`."""
    start = time.perf_counter()
    seconds = dict.fromkeys(STAGES, 0.0)
    progress = Progress(sum(len(folder.layout.positions(shard)) for shard in folder.layout.own_shards()))
    results = _execute(folder.pending(progress.count_before), labeler, make_labeler, options)
    try:
        for result in results:
            write_start = time.perf_counter()
            folder.add(result)
            seconds["write"] += time.perf_counter() - write_start
            for stage in STAGES:
                seconds[stage] += result.seconds[stage]
            for image in result.results:
                if image.skipped is not None:
                    logger.warning("skipped %(file_name)a (%(step)s): %(reason)s", image.skipped)
                    if image.trace:
                        logger.warning("%s", image.trace)
            progress.count(result)
    finally:
        results.close()  # stops the workers before the journals are closed
        folder.close()
        progress.close()
    return speed(progress.done, time.perf_counter() - start, seconds)


def _execute(
    units: Iterable[WorkUnit], labeler: Any, make_labeler: LabelerFactory, options: LabelingOptions
) -> Generator[UnitResult, None, None]:
    """Results of units, from the executor that fits the options and the extractor."""
    on_host, device = labeler.extractor.on_host, labeler.extractor.device
    if options.engine == "ray":
        return run_on_ray(units, make_labeler, options.ray_address, 1.0 if device.type == "cuda" else 0.0)
    one_process = not on_host and labeler.needs_extractor_to_finish
    if one_process and options.workers:
        logger.info("features of crops need the device, so this process does all work; --workers is ignored")
    if one_process or options.workers == 0:
        return (label_unit(labeler, unit) for unit in units)
    if on_host:
        return run_on_workers(units, make_labeler, options.workers)
    return run_on_device(units, labeler, make_labeler, options.workers, options.batch_size)


def _is_finished(output: str, folder: RunFolder, options: LabelingOptions) -> bool:
    """Whether a single-file run is complete; with --overwrite, its output is deleted first.

    Raises:
        InputError: the output exists without --resume or --overwrite, or was made with another configuration.
    """
    if not os.path.exists(output):
        return False
    if options.overwrite:
        os.unlink(output)
        return False
    if not options.resume:
        raise InputError(f"{output!r} exists; continue it with --resume, or replace it with --overwrite")
    if not is_sound(output):
        return False
    check_same_config(output, read_info(output), folder.info)
    # without an index but with shards, the run was killed before the index was written: the shards are merged again
    return load_index(output).photos is not None or not folder.label_files()


def _skipped(label_files: Iterable[str]) -> list[dict[str, Any]]:
    """Records of the images without labels, for `errors.json`."""
    return [record for path in label_files for record in read_skipped(path)]


def _job_speeds(folder: str) -> dict[str, dict]:
    """Speed and machine of each job's last run, from the summaries in a folder; damaged ones are skipped."""
    speeds = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "summary*.json"))):
        try:
            summary = read_json(path)
            name = os.path.basename(path)[len("summary") : -len(".json")].strip("-") or "0-of-1"
            if "this_run" in summary:
                facts = {"this_run": summary["this_run"], "machine": summary["machine"]}
                json.dumps(facts, allow_nan=False)  # raises if it cannot be written as standard json
                speeds[name] = facts
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("the speed of a job could not be read from %s (%s)", path, error)
    return speeds
