"""Check that the data sets of a config exist before anything expensive starts."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ConfigError, near_matches


def check_datasets(cfg: CfgNode, train: bool) -> None:
    """Check the names and files of DATASETS.TEST, and of DATASETS.TRAIN if ``train``, without reading the files.

    Raises:
        ConfigError: no data set is named, a name is not registered, or a test set cannot be scored.
        InputError: files are missing; the message names the script that creates them.
        OSError: files of one of Detectron2's built-in data sets are missing.
    """
    if train and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN names no data set to train on; give one, for example ('my_labels',)")
    if not train and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST names no data set to evaluate on; give one, for example ('my_set',)")
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN if train else ()), ("TEST", cfg.DATASETS.TEST)):
        for name in names:
            _check(f"DATASETS.{key}", name)


def _check(key: str, name: str) -> None:
    known = DatasetCatalog.list()
    if name not in known:
        raise ConfigError(
            f"{key}: no data set {name!r}.{near_matches(name, known)} Describe one of your own by "
            f"DATASETS.REGISTER.{name} 'labels.json, images/'"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("unlabeled") and not os.path.isdir(metadata.image_root):
        raise ConfigError(f"{key}: the folder {metadata.image_root!r} of data set {name!r} does not exist")
    if key.endswith("TEST") and not metadata.get("json_file"):
        raise ConfigError(
            f"{key}: {name!r} has no COCO json to be scored against (a folder of shards is none; join it by "
            "sohes merge)"
        )
    for entry in ("json_file", "label_folder", "list_file"):
        path = metadata.get(entry)
        if path and not os.path.exists(path):
            DatasetCatalog.get(name)  # raises an error that names the script for the file
            raise ConfigError(f"{key}: {path!r} of data set {name!r} does not exist")
