"""Join a folder of shards and the reports of its jobs into one label file with reports."""

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
    """Join a folder of shards into the COCO file that a single-file run would write, with reports beside it.

    Args:
        folder: output folder of `run_labeling`, of one or several jobs.
        output: output file, ending in `.json`.
        allow_incomplete: join the existing shards even if some are missing.
        overwrite: replace an existing file.

    Raises:
        InputError: the output exists, or its name is not allowed.
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
    """Speed and machine of each job's last run, from the summaries in a folder; damaged ones are skipped."""
    speeds = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "summary*.json"))):
        try:
            summary = read_json(path)
            name = os.path.basename(path)[len("summary") : -len(".json")].strip("-") or "0-of-1"
            if "this_run" in summary:
                speed = {"this_run": summary["this_run"], "machine": summary["machine"]}
                json.dumps(speed, allow_nan=False)  # raises if it cannot be written as standard json
                speeds[name] = speed
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("the speed of a job could not be read from %s (%s)", path, error)
    return speeds
