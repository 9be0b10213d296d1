"""Data loader for test sets, in batches of one image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader, get_detection_dataset_dicts

from ..errors import InputError

logger = logging.getLogger(__name__)

BLANK = 128  # grey


class MappedImages(Dataset):
    """Map-style data set of model inputs, computed from Detectron2 dicts.

    Replaces Detectron2's `MapDataset`: unpickling this class in a spawned worker imports this package, which patches
    Detectron2, before Detectron2 itself.

    An unusable image is logged and replaced by a blank one, so that a single file does not abort a training during
    evaluation. Skipping the image instead would raise the scores.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]] | Dataset, mapper: Callable[[Any], Any]):
        """
        Args:
            records: Detectron2 dicts.
            mapper: maps a dict to a model input.
        """
        self._mapper = mapper
        # serialized: reference counts of Python objects would cause copy-on-write of the list in every worker
        self._records: Any = DatasetFromList(records, copy=False) if isinstance(records, list) else records

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


def build_test_loader(cfg: CfgNode, dataset_name: str, mapper: Callable[[Any], Any]) -> DataLoader:
    """Build a loader of all images of a registered data set, in batches of one, divided among the processes.

    Args:
        cfg: config, of which DATALOADER.NUM_WORKERS is used.
        dataset_name: name of the data set.
        mapper: maps Detectron2's dict of an image to a model input.
    """
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return build_detection_test_loader(
        MappedImages(records, mapper), mapper=None, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
