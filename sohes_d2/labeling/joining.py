"""Joining a folder of shards, and the reports of the jobs that made them, to one label file with its reports."""

from __future__ import annotations

import glob
import json
import logging
import os

from ..errors import InputError
from ..labels.shards import list_shards, merge_shards, read_skipped, shard_name
from ..labels.writer import read_json
from ..structures.files import write_json
from .run import RunReport
from .summary import label_statistics

logger = logging.getLogger(__name__)


def join_folder(folder: str, output: str, allow_incomplete: bool = False, overwrite: bool = False) -> RunReport:
    """Join a folder of shards to the COCO file that one run into a file would have made; reports are written beside it.

    Args:
        folder: what `run_labeling` wrote, in one job or many.
        output: the file, ending in `.json`.
        allow_incomplete: join what is there although shards are missing.
        overwrite: replace an existing file.

    Raises:
        InputError: the output exists, or has a name that it must not have.
        InputError, CorruptFileError: see `merge_shards`.
    """
    if not output.lower().endswith(".json"):
        raise InputError(f"the output {output!r} must end in .json")
    if os.path.exists(output) and not overwrite:
        raise InputError(f"{output!r} exists; replace it by --overwrite")
    beside = os.path.dirname(output)
    os.makedirs(beside or os.curdir, exist_ok=True)
    indices = merge_shards(folder, output, allow_incomplete)
    skipped = [
        record for shard in list_shards(folder) for record in read_skipped(os.path.join(folder, shard_name(shard)))
    ]
    summary = {**label_statistics(indices), "jobs": _job_speeds(folder)}
    write_json(os.path.join(beside, "errors.json"), skipped)
    write_json(os.path.join(beside, "summary.json"), summary)
    return RunReport(output, skipped, summary)


def _job_speeds(folder: str) -> dict[str, dict]:
    """Per job, speed and machine of its last run, from the summaries in a folder; damaged ones are passed over."""
    speeds = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "summary*.json"))):
        try:
            summary = read_json(path)
            name = os.path.basename(path)[len("summary") : -len(".json")].strip("-") or "0-of-1"
            if "this_run" in summary:
                speed = {"this_run": summary["this_run"], "machine": summary["machine"]}
                json.dumps(speed, allow_nan=False)  # or it could not be written
                speeds[name] = speed
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("no speed of a job from %s (%s)", path, error)
    return speeds
