"""Table of the built-in data sets: paths of their files and the commands that prepare them.

Does not import Detectron2, so that the prepare scripts run without it. Registered by `sohes_d2.data.registration`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...labels.schema import Annotation, ImageRecord, Problems, read_annotations, read_image
from ...labels.writer import read_json

# The lists are nested: each starts with the smaller ones. 200,000 images are 2 % of SA-1B, as in SOHES.
SA1B_TRAIN_SIZES = (1_000, 10_000, 100_000, 200_000)


@dataclass(frozen=True)
class BuiltinDataset:
    """Files of a built-in data set, and how to create them.

    Attributes:
        labels: COCO json (for SA-1B training, a list of images), relative to the root of all data sets.
        images: folder of the images, relative to the same root.
        prepare: script in datasets/ and its arguments, which create ``labels`` from the original download.
        has_parents: whether masks have parents.
    """

    labels: str
    images: str
    prepare: str
    has_parents: bool = False

    @property
    def per_image(self) -> bool:
        """Whether ``labels`` is a list of images, each with a json beside it, as in SA-1B."""
        return self.labels.endswith(".txt")


def _table() -> dict[str, BuiltinDataset]:
    rows: dict[str, tuple[Any, ...]] = {  # images, prepare, has_parents
        "sa1b_test_1000": ("sa1b", "prepare_sa1b.py --test"),
        "coco_2017_val": ("coco/val2017", "prepare_coco.py"),
        "lvis_v1_val": ("coco", "prepare_lvis.py"),
        "coco_lvis_val": ("coco", "prepare_coco_lvis.py"),
        "entityseg_val": ("entityseg/images_lr", "prepare_entityseg.py"),
    }
    for count in SA1B_TRAIN_SIZES:
        rows[f"sa1b_train_{count}"] = ("sa1b", f"prepare_sa1b.py --train {count}")
    for split, folder in (("train", "training"), ("val", "validation")):
        full, instance = (f"prepare_ade20k.py {form}--split {split}" for form in ("", "--form instance "))
        rows[f"ade20k_full_{split}"] = (f"ADE20K_2021_17_01/images/ADE/{folder}", full, True)
        rows[f"ade20k_instance_{split}"] = (f"ADEChallengeData2016/images/{folder}", instance)
        rows[f"pascal_part_{split}"] = ("VOCdevkit/VOC2010/JPEGImages", f"prepare_pascal_part.py --split {split}", True)
    for split in ("train", "val", "test"):
        seg, ood = (f"prepare_partimagenet.py {form}--split {split}" for form in ("", "--form ood "))
        rows[f"partimagenet_{split}"] = (f"PartImageNet/images/{split}", seg, True)
        rows[f"partimagenet_ood_{split}"] = (f"partimagenet_ood/{split}", ood)
        rows[f"paco_lvis_v1_{split}"] = ("coco", f"prepare_paco.py --split {split}", True)
        rows[f"bsds500_{split}"] = (f"BSR/BSDS500/data/images/{split}", f"prepare_bsds500.py --split {split}")
    table = {}
    for name, row in rows.items():
        suffix = "txt" if name.startswith("sa1b_train") else "json"
        table[f"entities_{name}"] = BuiltinDataset(f"entities/{name}.{suffix}", *row)
    for split in ("train", "val"):  # generated: labels and images share a folder
        table[f"entities_synthetic_{split}"] = BuiltinDataset(
            f"synthetic/annotations/{split}.json", f"synthetic/{split}", "prepare_synthetic.py", has_parents=True
        )
    return table


BUILTIN = _table()


def datasets_root() -> str:
    """The folder of all data sets: $DETECTRON2_DATASETS, else ``datasets``."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def read_sa1b_json(path: str) -> tuple[ImageRecord, list[Annotation]]:
    """Read the image record and the annotations of one SA-1B json.

    Raises:
        InputError: the file cannot be read or is not an SA-1B json.
        CorruptFileError: the file is damaged.
    """
    value = read_json(path)
    found = value if isinstance(value, dict) else {}
    record, records = found.get("image"), found.get("annotations")
    if not isinstance(record, dict) or not isinstance(records, list):
        raise InputError(f"{path!r} is not an SA-1B json, which has an object `image` and a list `annotations`")
    image = read_image({**record, "id": record.get("image_id")}, Problems(), path)
    return image, read_annotations(records, Problems(refused=path), f"image {image['id']!r}")
