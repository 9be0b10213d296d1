"""Table of the built-in data sets: paths of their files and the commands that prepare them.

Does not import Detectron2, so that the prepare scripts run without it. Registered by `sohes_d2.data.registration`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import InputError
from ..labels.schema import Annotation, ImageRecord, Problems, read_annotations, read_image
from ..labels.writer import read_json

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
        per_image: ``labels`` is a list of images, each with a json beside it, as in SA-1B.
    """

    labels: str
    images: str
    prepare: str
    has_parents: bool = False
    per_image: bool = False


def _table() -> dict[str, BuiltinDataset]:
    rows = {
        "sa1b_test_1000": BuiltinDataset("sa1b_test_1000.json", "sa1b", "prepare_sa1b.py --test"),
        "coco_2017_val": BuiltinDataset("coco_2017_val.json", "coco/val2017", "prepare_coco.py"),
        "lvis_v1_val": BuiltinDataset("lvis_v1_val.json", "coco", "prepare_lvis.py"),
        "coco_lvis_val": BuiltinDataset("coco_lvis_val.json", "coco", "prepare_coco_lvis.py"),
        "entityseg_val": BuiltinDataset("entityseg_val.json", "entityseg/images_lr", "prepare_entityseg.py"),
    }
    for count in SA1B_TRAIN_SIZES:
        name = f"sa1b_train_{count}"
        rows[name] = BuiltinDataset(f"{name}.txt", "sa1b", f"prepare_sa1b.py --train {count}", per_image=True)
    for split, folder in (("train", "training"), ("val", "validation")):
        rows[f"ade20k_full_{split}"] = BuiltinDataset(
            f"ade20k_full_{split}.json",
            f"ADE20K_2021_17_01/images/ADE/{folder}",
            f"prepare_ade20k.py --split {split}",
            has_parents=True,
        )
        rows[f"ade20k_instance_{split}"] = BuiltinDataset(
            f"ade20k_instance_{split}.json",
            f"ADEChallengeData2016/images/{folder}",
            f"prepare_ade20k.py --form instance --split {split}",
        )
        rows[f"pascal_part_{split}"] = BuiltinDataset(
            f"pascal_part_{split}.json",
            "VOCdevkit/VOC2010/JPEGImages",
            f"prepare_pascal_part.py --split {split}",
            has_parents=True,
        )
    for split in ("train", "val", "test"):
        rows[f"partimagenet_{split}"] = BuiltinDataset(
            f"partimagenet_{split}.json",
            f"PartImageNet/images/{split}",
            f"prepare_partimagenet.py --split {split}",
            has_parents=True,
        )
        rows[f"partimagenet_ood_{split}"] = BuiltinDataset(
            f"partimagenet_ood_{split}.json",
            f"partimagenet_ood/{split}",
            f"prepare_partimagenet.py --form ood --split {split}",
        )
        rows[f"paco_lvis_v1_{split}"] = BuiltinDataset(
            f"paco_lvis_v1_{split}.json", "coco", f"prepare_paco.py --split {split}", has_parents=True
        )
        rows[f"bsds500_{split}"] = BuiltinDataset(
            f"bsds500_{split}.json", f"BSR/BSDS500/data/images/{split}", f"prepare_bsds500.py --split {split}"
        )
    table = {
        f"entities_{name}": BuiltinDataset(
            f"entities/{row.labels}", row.images, row.prepare, row.has_parents, row.per_image
        )
        for name, row in rows.items()
    }
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
