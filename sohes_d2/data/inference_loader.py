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
    """Inputs of a model from Detectron2's dicts.

    Not Detectron2's `MapDataset`: a loader's worker that is a fresh process imports what it unpickles, and this class
    makes it import this package, which mends Detectron2, before Detectron2 itself.

    An unusable image is logged and replaced by a blank one: one file must not end a training at its evaluation,
    and to leave the image out would raise the numbers.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]] | Dataset, mapper: Callable[[Any], Any]):
        """
        Args:
            records: Detectron2's dicts.
            mapper: from one of them to an input.
        """
        self._mapper = mapper
        # serialized: as Python objects, a list would be copied into every worker bit by bit
        self._records: Any = DatasetFromList(records, copy=False) if isinstance(records, list) else records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        try:
            return self._mapper(record)
        except InputError as error:
            logger.error("Evaluated as if it were blank: %s", error)
            image = torch.full((3, record["height"], record["width"]), BLANK, dtype=torch.uint8)
            return {**record, "unreadable": True, "image": image}


def build_test_loader(cfg: CfgNode, dataset_name: str, mapper: Callable[[Any], Any]) -> DataLoader:
    """All images of a registered data set, in batches of one, shared out over the processes.

    Args:
        cfg: DATALOADER.NUM_WORKERS.
        dataset_name: of the data set.
        mapper: from Detectron2's dict of an image to an input of the model.
    """
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return build_detection_test_loader(
        MappedImages(records, mapper), mapper=None, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
