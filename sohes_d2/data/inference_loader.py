"""Data loader of a test set, one image at a time."""

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
    """Model inputs from Detectron2's dicts.

    Replaces Detectron2's `MapDataset`: a spawned worker imports the modules of what it unpickles, and this class makes
    it import this package, which patches Detectron2, before Detectron2 itself.

    An unusable image is logged and replaced by a blank one: a single file must not stop a training at its evaluation,
    and skipping the image would raise the scores.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]] | Dataset, mapper: Callable[[Any], Any]):
        """
        Args:
            records: Detectron2's dicts.
            mapper: maps a dict to a model input.
        """
        self._mapper = mapper
        # serialized: a list of Python objects would gradually be copied into every worker (copy-on-write)
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
    """Loader of all images of a registered data set, in batches of one, distributed over the processes.

    Args:
        cfg: DATALOADER.NUM_WORKERS is used.
        dataset_name: name of the data set.
        mapper: maps Detectron2's dict of an image to a model input.
    """
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return build_detection_test_loader(
        MappedImages(records, mapper), mapper=None, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
