"""Loaders: an endless stream of training images, and the images of a test set.

The training sample at a position depends only on (seed, position), not on the number of workers or processes, or on
whether training was resumed. One pass over the data set is an epoch; every epoch has another order. The positions of an
iteration are assigned to the processes in turn, so its images are the same for any number of processes.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

from ..errors import InputError, SOHESError
from ..structures.masks import has_segmentation
from .registration import LabelDataset, is_unlabeled
from .training.mapper import PseudoLabelDatasetMapper
from .training.views import needs_teacher_view

logger = logging.getLogger(__name__)

# Number of consecutive broken images after which the data set is considered unusable (wrong folder, missing disk).
MAX_BROKEN_IN_A_ROW = 100

BLANK = 128  # grey, shown for unusable test images

# Mixed into the seed, for independent random numbers.
_ORDER, _AUGMENTATION = 0, 1


def build_training_loader(
    cfg: Any,
    mapper: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    dataset: Sequence[Mapping[str, Any]] | Dataset | None = None,
    start_iteration: int = 0,
) -> TrainingLoader:
    """Build the training loader for Detectron2's trainers: an endless iterable of lists of samples.

    Args:
        cfg: SEED, DATASETS.TRAIN, DATALOADER.NUM_WORKERS and FILTER_EMPTY_ANNOTATIONS, SOLVER.IMS_PER_BATCH (total of
            all processes). With a negative SEED a random one is drawn, so a resumed training gets other images.
        mapper: maps a Detectron2 dict to a sample, or to None to have the image replaced. If it has a method
            `map_or_raise`, that is called instead, to get the reason. The global generators of Python, numpy and torch
            (CPU) are seeded before each call.
        dataset: Detectron2 dicts in a list or map-style data set; None for those of DATASETS.TRAIN.
        start_iteration: iteration of the first batch; a resumed training passes that of its checkpoint.

    Raises:
        ValueError: the number of processes does not divide the batch size, or the data set is empty or not map-style.
    """
    images: Any = training_dataset(cfg) if dataset is None else _map_style(dataset)
    if isinstance(mapper, PseudoLabelDatasetMapper):
        mapper.set_donors(images)
    batch_size = images_per_process(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    logger.info("Training stream: %d images, seed %d, from iteration %d", len(images), seed, start_iteration)
    stream = PositionDataset(images, mapper, seed)
    start = start_iteration * cfg.SOLVER.IMS_PER_BATCH
    loader = DataLoader(
        stream,
        batch_size=batch_size,
        sampler=range(start + comm.get_rank(), sys.maxsize, comm.get_world_size()),  # endless
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        drop_last=True,
        worker_init_fn=_begin_worker,
        # a separate generator: each iterator of a DataLoader draws a number, by default from the global generator
        generator=torch.Generator().manual_seed(seed),
    )
    return TrainingLoader(loader)


def images_per_process(total: int, processes: int) -> int:
    """SOLVER.IMS_PER_BATCH divided by the number of processes.

    Raises:
        ValueError: it is not divisible.
    """
    if total < 1 or total % processes:
        below = total // processes * processes
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}, which is not divisible by {processes} processes; set it to "
            + (f"{below} or {below + processes}" if below > 0 else str(processes))
        )
    return total // processes


def training_dataset(cfg: Any) -> Dataset:
    """Concatenate the data sets of DATASETS.TRAIN.

    With FILTER_EMPTY_ANNOTATIONS, images without labels are removed, since they would be trained as background. Of data
    sets that are read image by image, only those with an index (`LabelDataset`) can be filtered. Data sets marked as
    unlabeled (`registration.register_unlabeled`) are included, unfiltered, if and only if the model learns from a
    teacher.

    Raises:
        KeyError: a name that is not registered.
        InputError: no image is left.
    """
    names = [cfg.DATASETS.TRAIN] if isinstance(cfg.DATASETS.TRAIN, str) else list(cfg.DATASETS.TRAIN)
    parts = []
    for name in names:
        if is_unlabeled(name) and not needs_teacher_view(cfg):
            logger.warning("%s: skipped: images without labels are for models that learn from a teacher", name)
            continue
        dataset = DatasetCatalog.get(name)
        images = len(dataset)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not is_unlabeled(name):
            dataset = _without_empty(dataset)
        logger.info("%s: %d images, %d of them skipped for lack of labels", name, images, images - len(dataset))
        if len(dataset):
            parts.append(_map_style(dataset))
    if parts:
        return parts[0] if len(parts) == 1 else ConcatDataset(parts)
    if names and all(map(is_unlabeled, names)):
        raise InputError(
            f"DATASETS.TRAIN ({', '.join(names)}) has only images without labels, which this model cannot learn from: "
            "make labels with sohes label, or train a model whose teacher makes them "
            "(MODEL.META_ARCHITECTURE SOHESMutualLearning)"
        )
    raise InputError(f"DATASETS.TRAIN ({', '.join(names) or 'empty'}) has no images with labels; check the data sets")


class PositionDataset(Dataset):
    """Map-style stream: ``stream[p]`` is (sample, list of (file name, reason) of the broken images it replaces).

    A broken image is replaced by the next intact one in the order of its epoch.
    """

    def __init__(self, dataset: Any, mapper: Callable[[Mapping[str, Any]], dict[str, Any] | None], seed: int):
        """
        Args:
            dataset: map-style, of Detectron2 dicts.
            mapper: see `build_training_loader`.
            seed: not negative.
        """
        self._dataset = dataset
        self._map = getattr(mapper, "map_or_raise", mapper)
        self._seed = seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        epoch, slot = divmod(int(position), len(self._dataset))
        order = self._order_of(epoch)
        broken: list[tuple[str, str]] = []
        while len(broken) < min(len(order), MAX_BROKEN_IN_A_ROW):
            index = int(order[(slot + len(broken)) % len(order)])
            # seed again for every attempt, so that the sample does not depend on the previous one
            with seeded(self._seed, _AUGMENTATION, int(position)):
                sample, name, reason = self._attempt(index)
            if sample is not None:
                return sample, broken
            broken.append((name, reason))
        raise SOHESError(
            f"{len(broken)} images in a row cannot be used, of {len(order)} in the data set; check the folder of the "
            f"images. The first: {broken[0][1]}"
        )

    def _attempt(self, index: int) -> tuple[dict[str, Any] | None, str, str]:
        """(sample, "", "") or (None, file name, reason)."""
        name = f"record {index} of the data set"
        try:
            record = self._dataset[index]
            name = record["file_name"]
        except (OSError, ValueError, KeyError) as error:  # a lazy data set whose file is damaged or gone
            return None, name, f"{name} cannot be read: {error!r}"
        try:
            sample = self._map(record)
        except InputError as error:
            return None, name, str(error)
        return sample, name, "" if sample is not None else f"the mapper refused {name!r}"

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            indices = np.arange(len(self._dataset), dtype=np.int32)  # int32: half the memory in every worker
            self._order = np.random.default_rng([self._seed, _ORDER, epoch]).permutation(indices)
            self._epoch = epoch
        return self._order


class TrainingLoader:
    """Endless iterable of batches (lists of samples); every iterator begins at the start iteration.

    Attributes:
        skipped: file name -> reason, of broken images in the batches of this process so far.
    """

    def __init__(self, loader: DataLoader):
        self._loader = loader
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                for _, broken in batch:
                    self._report(broken)
                yield [sample for sample, _ in batch]
        finally:
            _end_workers(batches)

    def _report(self, broken: list[tuple[str, str]]) -> None:
        # here and not in the workers, which would repeat messages, and whose logs may be lost
        for name, reason in broken:
            if name not in self.skipped:
                self.skipped[name] = reason
                logger.warning("skipped (%d so far) and replaced by another image: %s", len(self.skipped), reason)


class MappedImages(Dataset):
    """Map-style data set of model inputs, computed from Detectron2 dicts.

    Replaces Detectron2's `MapDataset`: unpickling this class in a spawned worker imports this package, which patches
    Detectron2, before Detectron2 itself.

    An unusable image is logged and replaced by a blank one, so that a single file does not abort a training during
    evaluation. Skipping the image instead would raise the scores.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]] | Dataset, mapper: Callable[[Any], Any]):
        self._mapper = mapper
        self._records = _serialized(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        try:
            return self._mapper(record)
        except InputError as error:
            logger.error("Evaluated as a blank image: %s", error)
            image = torch.full((3, record["height"], record["width"]), BLANK, dtype=torch.uint8)
            return {**record, "unreadable": True, "image": image}


def build_test_loader(cfg: Any, dataset_name: str, mapper: Callable[[Any], Any]) -> DataLoader:
    """Build a loader of all images of a registered data set, in batches of one, divided among the processes.

    Args:
        cfg: config, of which DATALOADER.NUM_WORKERS is used.
        dataset_name: name of the data set.
        mapper: maps Detectron2's dict of an image to a model input.
    """
    images = MappedImages(get_detection_dataset_dicts(dataset_name, filter_empty=False), mapper)
    return build_detection_test_loader(images, mapper=None, num_workers=cfg.DATALOADER.NUM_WORKERS)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch (CPU) inside the block; restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  (Detectron2's augmentations use it)
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would change the GPU's generators, too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


def _begin_worker(worker: int) -> None:
    # Signals reach the whole process group: the main process finishes its iteration and then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # by default OpenCV uses all cores in each worker (torch does not)


def _end_workers(batches: Any) -> None:
    """Stop the worker processes of a DataLoader's iterator, which ignore the SIGTERM sent at exit."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()  # waits some seconds for their current item
        for worker in batches._workers:
            worker.kill()


def _map_style(dataset: Any) -> Dataset:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"the training stream needs a list or map-style data set, with __len__ and __getitem__, got {type(dataset)}"
        )
    if len(dataset) == 0:
        raise ValueError("the training set has no images; check DATASETS.TRAIN")
    return _serialized(dataset)


def _serialized(dataset: Any) -> Any:
    # reference counts of Python objects would cause copy-on-write of a list in every worker
    return DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset


def _without_empty(dataset: Any) -> Any:
    if isinstance(dataset, LabelDataset):
        # An array, since reference counts of a list would cause copy-on-write in every worker.
        labelled: Any = np.flatnonzero(dataset.labels.rows["count"])
        return dataset if len(labelled) == len(dataset) else Subset(dataset, labelled)
    if isinstance(dataset, list):
        return [r for r in dataset if any(_is_label(a) for a in r.get("annotations", []))]
    return dataset


def _is_label(annotation: Mapping[str, Any]) -> bool:
    return not annotation.get("iscrowd") and has_segmentation(annotation)
