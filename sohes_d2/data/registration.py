"""Registration of the built-in data sets, and of any COCO json or folder of shards, in Detectron2.

Every data set is class-agnostic: one class, "entity". Nothing is read before `DatasetCatalog.get(name)`.

`DatasetCatalog.get` returns a list of Detectron2's dicts, or a torch `Dataset` that reads each dict on access
(`PerImageDataset`, `LabelDataset`). Detectron2's loaders accept both, by name or by
``build_detection_train_loader(dataset=DatasetCatalog.get(name), mapper=...)``. In Detectron2's own loader,
`DATALOADER.FILTER_EMPTY_ANNOTATIONS` has no effect on a `Dataset`. `loaders` filters a `LabelDataset` by the
mask counts in its index:
``torch.utils.data.Subset(dataset, np.flatnonzero(dataset.labels.rows["count"]))`` contains the images with masks.

A folder of photos without labels can also be registered (`register_unlabeled`), for models that learn from a teacher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from torch.utils.data import Dataset

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..config.load import read_yaml
from ..errors import ConfigError, InputError, RecordError, near_matches
from ..labels.forests import find_parents
from ..labels.index import is_label_file
from ..labels.reader import read_label_file, report
from ..labels.schema import (
    Annotation,
    ImageRecord,
    Problems,
    annotation_place,
    image_name,
    image_size,
    or_none,
    read_annotations,
    read_box,
    read_score,
)
from ..labels.shards import ShardedDataset
from ..structures.masks import rles_from_coco
from .benchmarks.builtin import BUILTIN, datasets_root, read_sa1b_json
from .sources import read_image_list

CLASSES = ["entity"]
_FORMS = "`name: json, images`, or `name: {images: folder}` for images without labels"
# Annotation fields in addition to those of Detectron2: the hierarchy, and the score of pseudo-labels.
ANNOTATION_FIELDS = ["id", "parent_id", "depth", "score"]


_damaged: dict[str, str] = {}  # label file -> summary of its unusable annotations


def register_builtin_datasets(root: str | None = None) -> None:
    """Register all built-in data sets without reading files. Existing registrations are replaced.

    Args:
        root: folder of all data sets; None for `datasets_root()`.
    """
    root = datasets_root() if root is None else root
    for name, row in BUILTIN.items():
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        labels, images = os.path.join(root, row.labels), os.path.join(root, row.images)
        load, file_key = (PerImageDataset, "list_file") if row.per_image else (load_entities, "json_file")
        metadata = {file_key: labels, "has_parents": row.has_parents}
        _register(name, partial(load, labels, images, row.prepare), images, **metadata)


def register_coco_entities(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO json of any classes, or a folder of shards, as a class-agnostic data set, without reading it.

    Args:
        name: name of the data set.
        json_file: a COCO json, or a folder written by `sohes label`. Folders and label files of this project (see
            `sohes_d2.labels.writer`) are read image by image, see `open_entities`.
        image_root: folder of the images.

    Raises:
        ConfigError: the name is taken.
    """
    # Detectron2 and its evaluators open json_file as one COCO file
    file_key = "label_folder" if os.path.isdir(json_file) else "json_file"
    _register(name, partial(open_entities, json_file, image_root), image_root, **{file_key: json_file})


def register_unlabeled(name: str, image_root: str) -> None:
    """Register all images in a folder and its sub-folders as a data set without labels, without reading it.

    Only for training of models that learn from a teacher (see `loaders.training_dataset`). The metadata has
    ``unlabeled=True``.

    Args:
        name: name of the data set.
        image_root: the folder.

    Raises:
        ConfigError: the name is taken.
    """
    _register(name, partial(load_unlabeled, image_root), image_root, unlabeled=True)


def _register(name: str, load: Callable[[], Any], image_root: str, **metadata: Any) -> None:
    if name in DatasetCatalog.list():
        raise ConfigError(f"a data set {name!r} is registered already; choose another name")
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES),
        thing_dataset_id_to_contiguous_id={1: 0},
        image_root=image_root,
        evaluator_type="entity",
        **metadata,
    )


def is_unlabeled(name: str) -> bool:
    """Whether a registered data set is unlabeled: the entities of its images are unknown, not absent."""
    return bool(MetadataCatalog.get(name).get("unlabeled", False))


def register_datasets(specs: str | Mapping[str, Any]) -> list[str]:
    """Register data sets described in yaml.

    Args:
        specs: yaml text such as ``my_set: labels.json, images/``, or its parsed content. A value is "json, images",
            a list of the two, or a mapping with the keys `json` and `images`, where `json` may be a folder of
            shards. Without json, as in ``my_photos: {images: photos/}``, all images of the folder are registered as
            unlabeled. Paths are relative to the working directory.

    Returns:
        The names.

    Raises:
        ConfigError: invalid content, or a name is taken.
    """
    where = "the description of data sets"
    if isinstance(specs, str):
        try:
            specs = read_yaml(specs, where)
        except ConfigError as error:
            raise ConfigError(f"{error}; write {_FORMS}") from error
    if not isinstance(specs, Mapping):
        raise ConfigError(f"{where} must read {_FORMS}, got {specs!r}")
    pairs = {str(name): _json_and_images(str(name), value, where) for name, value in specs.items()}
    for name, (json_file, image_root) in pairs.items():
        if json_file:
            register_coco_entities(name, json_file, image_root)
        else:
            register_unlabeled(name, image_root)
    return list(pairs)


def check_datasets(cfg: CfgNode, train: bool) -> None:
    """Check the names and files of DATASETS.TEST, and of DATASETS.TRAIN if ``train``, without reading the files.

    Raises:
        ConfigError: no data set is named, a name is not registered, or a test set cannot be scored.
        InputError: files are missing; the message names the script that creates them.
        OSError: files of one of Detectron2's built-in data sets are missing.
    """
    needed = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[needed]:
        raise ConfigError(f"DATASETS.{needed} names no data set; give one, for example ('my_labels',)")
    for key in ("TRAIN", "TEST") if train else ("TEST",):
        for name in cfg.DATASETS[key]:
            _check_dataset(f"DATASETS.{key}", name)


def _check_dataset(key: str, name: str) -> None:
    known = DatasetCatalog.list()
    if name not in known:
        raise ConfigError(
            f"{key}: no data set {name!r}.{near_matches(name, known)} Describe one of your own by "
            f"DATASETS.REGISTER.{name} 'labels.json, images/'"
        )
    metadata = MetadataCatalog.get(name)
    if key.endswith("TEST") and not metadata.get("json_file"):
        raise ConfigError(
            f"{key}: {name!r} has no COCO json to evaluate against (a folder of shards is not one; merge it "
            "with sohes merge)"
        )
    for entry in ("json_file", "label_folder", "list_file", *(["image_root"] if is_unlabeled(name) else [])):
        path = metadata.get(entry)
        if path and not os.path.exists(path):
            DatasetCatalog.get(name)  # raises an error that names the script to create the file
            raise ConfigError(f"{key}: {path!r} of data set {name!r} does not exist")


def open_entities(labels: str, image_root: str) -> list[dict[str, Any]] | LabelDataset:
    """Open a COCO json or a folder of shards as Detectron2 dicts, with class 0 for all annotations.

    Args:
        labels: a folder of shards or a label file of this project, which are read lazily, or any other COCO json,
            which is loaded.
        image_root: folder of the images.

    Raises:
        InputError: the path does not exist, shards are missing, or a file cannot be used.
        CorruptFileError: a damaged shard.
    """
    if os.path.isdir(labels) or is_label_file(labels):
        return LabelDataset(ShardedDataset(labels), image_root)
    return load_entities(labels, image_root)


def load_unlabeled(image_root: str) -> list[dict[str, Any]]:
    """List all images in a folder and its sub-folders as Detectron2 dicts with `file_name` and `image_id`.

    They are listed by `read_image_list`. No file is opened, so the dicts have no size. They have no `annotations`
    either: an empty list would mean an image without entities.

    Raises:
        InputError: the folder does not exist, or has no image.
    """
    if not os.path.isdir(image_root):
        raise InputError(f"the folder {image_root!r} of images without labels does not exist: check the path")
    return [{"file_name": image.path, "image_id": image.image_id} for image in read_image_list(image_root)]


def load_entities(json_file: str, image_root: str, prepare: str = "") -> list[dict[str, Any]]:
    """Load a COCO json as Detectron2 dicts; annotations have class 0 and keep `id`, `parent_id`, `depth` and `score`.

    Unusable annotations are counted by reason in a warning. They lose their `segmentation`, but keep their place in the
    hierarchy.

    Args:
        json_file: the COCO json; its classes are ignored.
        image_root: folder of the images.
        prepare: the script that creates the file, for the error message.

    Raises:
        InputError: the file does not exist.
        InputError: the file is unusable, e.g. images without name or size, or ambiguous ids.
        CorruptFileError: the file is damaged.
    """
    _require(json_file, prepare)
    file = read_label_file(json_file)
    records = []
    for image_id, image in file.images.items():
        _take_out_unusable(file.by_image[image_id], file.size(image_id), file.problems)
        records.append(_detectron2_dict(image, file.by_image[image_id], image_root, json_file))
    report(json_file, file.problems)
    damaged = len(file.problems) - file.problems.counts["no segmentation"]
    _damaged[json_file] = f"{json_file}: {file.problems.summary()}" if damaged else ""
    return records


def damaged_labels(names: Iterable[str]) -> list[str]:
    """Return a message for each of these data sets that this process has loaded and that has unusable annotations.

    Annotations with a box but no mask are common and are not counted.
    """
    files = (MetadataCatalog.get(name).get("json_file") for name in names)
    return [_damaged[file] for file in files if _damaged.get(file)]


def _take_out_unusable(annotations: list[Annotation], size: tuple[int, int], problems: Problems) -> None:
    """Remove unusable segmentations; their annotations are kept because they may have children."""
    checked: list[Any] = []
    for annotation in annotations:
        checked.append({key: annotation.pop(key) for key in ("segmentation", "score") if key in annotation})
    errors = rles_from_coco([fields.get("segmentation") for fields in checked], size, draw=False)
    for k, (annotation, fields, error) in enumerate(zip(annotations, checked, errors)):
        with problems.at(annotation_place(annotation, k)):
            read_score(fields)
            if isinstance(error, RecordError):
                raise error
            annotation.update(fields)
    find_parents(annotations, problems, "")


def _detectron2_dict(image: ImageRecord, annotations: list[Annotation], image_root: str, labels: str) -> dict[str, Any]:
    """Detectron2's dict of an image; ``labels`` is the file of its record, for messages."""
    height, width = image_size(image, labels)
    return {
        "file_name": os.path.join(image_root, image_name(image, labels)),
        "height": height,
        "width": width,
        "image_id": image["id"],
        "annotations": [_detectron2_annotation(annotation) for annotation in annotations],
    }


def _detectron2_annotation(annotation: Annotation) -> dict[str, Any]:
    fields: Mapping[str, Any] = annotation
    box = or_none(read_box, annotation)  # wrong boxes are ignored: boxes are computed from the masks
    return {
        "iscrowd": annotation["iscrowd"],
        **({} if box is None else {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}),
        "category_id": 0,
        **{key: fields[key] for key in ("segmentation", *ANNOTATION_FIELDS) if key in fields},
    }


class PerImageDataset(Dataset):
    """Images with one json each, in the format of SA-1B, read on access: only the list is in memory.

    ``dataset[i]`` is Detectron2's dict of image i, all annotations of class 0.
    """

    def __init__(self, list_file: str, image_root: str, prepare: str = ""):
        """Read the list.

        Args:
            list_file: one image path per line, relative to ``image_root``; the json is beside the image.
            image_root: folder of the images.
            prepare: the script that creates the list, for the error message.

        Raises:
            InputError: the list does not exist.
        """
        _require(list_file, prepare)
        self.image_root = image_root
        with open(list_file, encoding="utf-8") as file:
            self.file_names = [line.strip() for line in file if line.strip()]

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.file_names[index]
        json_file = os.path.join(self.image_root, os.path.splitext(name)[0] + ".json")
        image, annotations = read_sa1b_json(json_file)
        return _detectron2_dict({**image, "file_name": name}, annotations, self.image_root, json_file)


class LabelDataset(Dataset):
    """Images of a folder of shards or of one label file, read on access: about 50 bytes per image in memory.

    ``dataset[i]`` is Detectron2's dict of image i, all annotations of class 0, with the available fields of
    `ANNOTATION_FIELDS`; images are in file order. Pickling to a worker copies only the index.
    """

    def __init__(self, labels: ShardedDataset, image_root: str):
        """
        Args:
            labels: the records.
            image_root: folder of the images.
        """
        self.labels = labels
        self.image_root = image_root

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.labels[index]
        image, problems = record["image"], Problems(refused=self.labels.folder)
        annotations = read_annotations(record["annotations"], problems, f"image {image['id']}")
        return _detectron2_dict(image, annotations, self.image_root, self.labels.folder)


def _require(path: str, prepare: str) -> None:
    if not os.path.isfile(path):
        remedy = (
            f"make it with `python datasets/{prepare}`, and see datasets/README.md for the download"
            if prepare
            else "check the path"
        )
        raise InputError(f"{path!r} does not exist: {remedy} (DETECTRON2_DATASETS is {datasets_root()!r})")


_Pair = tuple[str, Annotated[str, msgspec.Meta(min_length=1)]]


def _json_and_images(name: str, value: Any, where: str) -> tuple[str, str]:
    parts = value
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
    elif isinstance(value, Mapping) and set(value) <= {"json", "images"}:
        parts = [value.get("json") or "", value.get("images")]
    try:
        return msgspec.convert(parts, _Pair)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{where}: {name!r} must be `json, images` (two paths), or `{{images: folder}}` for images without labels, "
            f"got {value!r}"
        ) from error
