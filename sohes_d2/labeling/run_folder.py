"""The folder of a labeling run: configuration, journals and shards; a killed run can be resumed from it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

from ..data.sources import ImageItem, ImageList
from ..errors import CorruptFileError, InputError
from ..labels.index import check_label_file, load_index, read_info, remove_index, save_index, scan_label_file
from ..labels.journal import ShardJournal
from ..labels.shards import RUN_FILE, ShardedDataset, list_shards, read_skipped, shard_name, write_folder_index
from ..labels.writer import dump_line, read_checked_json, write_checked_json, write_label_file
from .photo_states import PhotoState, changed_photos, from_array, photo_states, to_array, with_checksum
from .units import ShardLayout, UnitResult, WorkUnit, plan_units

logger = logging.getLogger(__name__)

_OWN_FILE = re.compile(
    r"(shard_\d{5,}\.(json|index\.npz|partial\.jsonl)|(run|index)\.json|(errors|summary)(-\d+-of-\d+)?\.json)(\S*\.tmp)?"
)


class RunFolder:
    """Output folder of a run, as used by one job.

    `pending` plans the remaining units, `add` stores finished units in any order. A shard is written when its last
    unit is added. If the process is killed, the folder contains only complete shards and complete units.
    """

    def __init__(self, folder: str, images: ImageList, layout: ShardLayout, info: Mapping[str, Any], batch_size: int):
        self.folder = folder
        self.layout = layout
        self.info = info
        self._images = images
        self._batch_size = batch_size
        self._journals: dict[int, ShardJournal] = {}
        self._states: dict[int, dict[int, PhotoState]] = {}  # shard in progress -> states of its photos
        # Jobs may write the same index concurrently, so each needs its own temporary name.
        self._writer = f".job-{layout.job}" if layout.jobs > 1 else ""

    def open(self, resume: bool, overwrite: bool) -> None:
        """Create the folder, or check that a run may continue in it.

        Raises:
            InputError: the folder has an output and neither flag is given, or its configuration differs.
        """
        os.makedirs(self.folder, exist_ok=True)
        if overwrite:
            if self.layout.jobs > 1:
                raise InputError("--overwrite would delete other jobs' shards; remove the folder before the jobs start")
            for name in filter(_OWN_FILE.fullmatch, os.listdir(self.folder)):
                os.unlink(os.path.join(self.folder, name))
        config = json.loads(json.dumps({"layout": self.layout.describe(), "info": self.info}))
        path = os.path.join(self.folder, RUN_FILE)
        if os.path.exists(path):
            if not resume and (self.layout.jobs == 1 or any(map(self._exists, self.layout.own_shards()))):
                raise InputError(
                    f"{self.folder!r} already has an output; continue it with --resume, or replace it with --overwrite"
                )
            try:
                check_same_config(path, read_checked_json(path), config)
            except CorruptFileError as error:
                self._replace_damaged_config(path, config, error)
        elif list_shards(self.folder):
            raise InputError(
                f"{self.folder!r} has shards but no {RUN_FILE}, so they cannot be continued; choose another folder"
            )
        else:
            write_checked_json(path, config, self._writer)

    def _replace_damaged_config(self, path: str, config: Mapping[str, Any], error: CorruptFileError) -> None:
        """Rewrite the configuration. Shards contain theirs and are checked; journals do not and are discarded."""
        for shard in map(self._path, list_shards(self.folder)):
            check_same_config(shard, read_info(shard), config["info"])
        logger.warning("%s; the images of unfinished shards are labeled again", error)
        for own in self.layout.own_shards():
            if os.path.exists(self._journal_path(own)):
                os.unlink(self._journal_path(own))
        write_checked_json(path, config, self._writer)

    def pending(self, count_done: Callable[[int], None]) -> Iterator[WorkUnit]:
        """Yield the remaining units, planned lazily shard by shard.

        Args:
            count_done: called for each shard with the number of its images that are already done.
        """
        for shard in self.layout.own_shards():
            if self._is_finished(shard):
                count_done(len(self.layout.positions(shard)))
                continue
            journal = self._journals[shard] = ShardJournal(self._journal_path(shard))
            if journal.damaged:
                logger.warning("%s: %d damaged lines; their images are labeled again", journal.path, journal.damaged)
            items = self._items(shard)
            known = {image_id: PhotoState(*state) for image_id, state in journal.photos.items()}
            journal.forget(self._with_batches(shard, self._changed(items, known, journal.path)))
            self._states[shard] = photo_states(items)  # before the photos are read
            units = plan_units(items, shard, self._batch_size)
            left = [unit for unit in units if not {item.image_id for item in unit.items} <= journal.done]
            count_done(len(journal.done))
            yield from left
            if not left:
                self._finish(shard)

    def add(self, result: UnitResult) -> None:
        """Store a finished unit; it is on disk when this returns."""
        shard = result.unit.shard
        lines = [(image.image_id, image.skipped is not None, image.lines) for image in result.results]
        photos = {}
        for item, image in zip(result.unit.items, result.results):
            state = self._states[shard][item.image_id]
            photos[item.image_id] = with_checksum(item.path, state) if image.skipped is None else state
        journal = self._journals[shard]
        journal.append(result.unit.number, lines, photos)
        if len(journal.done) == len(self.layout.positions(shard)):
            self._finish(shard)

    def write_index(self) -> None:
        """Write index.json of all finished shards of the folder."""
        write_folder_index(self.folder, self.layout.describe(), self._writer)

    def label_files(self) -> list[str]:
        """This job's finished shards."""
        return [path for path in map(self._path, self.layout.own_shards()) if os.path.exists(path)]

    def close(self) -> None:
        """Close the journals of shards in progress."""
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()

    def _finish(self, shard: int) -> None:
        journal = self._journals.pop(shard)
        ids = [item.image_id for item in self._items(shard)]
        path = self._path(shard)
        write_label_file(path, self.info, journal.blocks(ids))
        index = scan_label_file(path)
        index.photos = to_array(journal.photos, ids)
        save_index(path, index)
        journal.remove()
        del self._states[shard]

    def outdated(self, label_file: str, shard: int | None = None) -> set[int]:
        """Ids of the images in a label file whose photos have changed since, by the states in its index.

        If the index has none, it is saved with the current states.

        Args:
            label_file: a shard, or the merged file.
            shard: number of the shard; None: the merged file.
        """
        items = self._images[:] if shard is None else self._items(shard)
        index = load_index(label_file)
        if index.photos is None:
            logger.info("%s has no states of its photos; they are assumed to be unchanged", label_file)
            index.photos = to_array(photo_states(items), [item.image_id for item in items])
            save_index(label_file, index)
        return self._changed(items, from_array(index.photos), label_file)

    def _is_finished(self, shard: int) -> bool:
        """Whether a shard is complete and its photos are unchanged; cleans up after an interrupted write."""
        path, journal_path = self._path(shard), self._journal_path(shard)
        if not os.path.exists(path) or not is_sound(path):
            return False
        if os.path.exists(journal_path):
            if load_index(path).photos is None:  # killed before the index was written: write the shard again
                return False
            os.unlink(journal_path)
        outdated = self.outdated(path, shard)
        if outdated:
            self.take_back(path, outdated, [shard])
        return not outdated

    def _changed(self, items: list[ImageItem], known: Mapping[int, PhotoState], path: str) -> set[int]:
        """Ids of the images whose photos have changed; logs them."""
        changed = changed_photos(items, known)
        if changed:
            names = ", ".join(ascii(item.file_name) for item in changed[:5]) + (", ..." if len(changed) > 5 else "")
            logger.warning("%s: %d photos have changed and are labeled again: %s", path, len(changed), names)
        return {item.image_id for item in changed}

    def _with_batches(self, shard: int, changed: Set[int]) -> set[int]:
        """Ids of the images of a shard to label again: the changed ones, and those that may share a batch with them."""
        ids = {item.image_id for item in self._items(shard)}
        return ids if self._batch_size > 1 and ids & changed else ids & changed

    def take_back(self, label_file: str, outdated: Set[int], shards: Iterable[int] | None = None) -> None:
        """Convert a label file back to the journals of its shards, and delete it.

        Args:
            label_file: a shard, or the merged file.
            outdated: ids of images to omit, including those that may share a batch with them.
            shards: shards whose images it contains; None: all of this job.
        """
        labels = ShardedDataset(label_file)
        skipped = {record["id"]: record for record in read_skipped(label_file)}
        row_of = {image_id: row for row, image_id in enumerate(labels.rows["image_id"].tolist())}
        known = from_array(load_index(label_file).photos)
        for shard in self.layout.own_shards() if shards is None else shards:
            again = self._with_batches(shard, outdated)
            kept = [item.image_id for item in self._items(shard) if item.image_id not in again]
            results = [(i, True, [dump_line(skipped[i])]) for i in kept if i in skipped]
            for i in filter(row_of.__contains__, kept):
                record = labels[row_of[i]]
                results.append((i, False, [*map(dump_line, (record["image"], *record["annotations"]))]))
            journal = ShardJournal(self._journal_path(shard))
            journal.append(0, results, known)
            journal.close()
        os.unlink(label_file)  # before its index: photos of a label file without index count as unchanged
        remove_index(label_file)

    def _items(self, shard: int) -> list[ImageItem]:
        return [self._images[position] for position in self.layout.positions(shard)]

    def _exists(self, shard: int) -> bool:
        return os.path.exists(self._path(shard)) or os.path.exists(self._journal_path(shard))

    def _path(self, shard: int) -> str:
        return os.path.join(self.folder, shard_name(shard))

    def _journal_path(self, shard: int) -> str:
        return os.path.splitext(self._path(shard))[0] + ".partial.jsonl"


def is_sound(label_file: str) -> bool:
    """Whether a label file is intact; a damaged one is deleted, so that it is written again."""
    try:
        check_label_file(label_file)
    except CorruptFileError as error:
        logger.warning("%s; its images are labeled again", error)
        remove_index(label_file)
        os.unlink(label_file)
        return False
    return True


def check_same_config(path: str, before: Any, now: Any) -> None:
    """Check that a run continues with the same configuration.

    Raises:
        InputError: the configurations differ; the message lists the keys with both values.
    """
    old, new = _flat(before), _flat(now)
    lines = [
        f"  {key}: was {old.get(key, '(absent)')}, now {new.get(key, '(absent)')}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if lines:
        raise InputError(
            f"{path!r} was made with another configuration; resume with the old one, or choose another output:\n"
            + "\n".join(lines)
        )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested dicts to dotted keys, with values as json."""
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    flat = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
