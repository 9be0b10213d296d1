"""Folders of photos without labels: registered, used with a teacher only, never treated as empty images."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from sohes_d2 import add_sohes_config
from sohes_d2.data.loaders import build_training_loader, training_dataset
from sohes_d2.data.registration import is_unlabeled, register_datasets
from sohes_d2.data.training.mapper import PseudoLabelDatasetMapper
from sohes_d2.errors import ConfigError, InputError
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

SIZE = (24, 32)
NAMES = ["a.png", "deep/b.png", "deep/c.png"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 10 * (k + 1), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def register():
    """Register a description or a list of records; Detectron2's catalogs are restored afterwards."""
    names = []

    def call(specs, records=None):
        if records is None:
            names.extend(register_datasets(specs))
        else:
            DatasetCatalog.register(specs, lambda: records)
            names.append(specs)
        return names[-1]

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def config():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 1, 6, 0
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_LABEL_AREA = "RGB", 32, 1
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.MODEL.META_ARCHITECTURE = "SOHESMutualLearning"
    return cfg


@pytest.fixture
def labeled(tmp_path):
    """Two records of labeled images; the second has no entities."""
    path = tmp_path / "labeled.png"
    Image.fromarray(np.full((*SIZE, 3), 200, np.uint8)).save(path)
    masks = np.zeros((1, *SIZE), bool)
    masks[0, 4:16, 4:16] = True
    found = Forest(encode_masks(masks), [-1], SIZE).to_coco(7)
    size = {"height": SIZE[0], "width": SIZE[1]}
    return [
        {"file_name": str(path), "image_id": 7, **size, "annotations": found},
        {"file_name": str(path), "image_id": 8, **size, "annotations": []},
    ]


@pytest.mark.parametrize("form", ["{{images: {}}}", '", {}"', '{{json: "", images: {}}}', "{{json: , images: {}}}"])
def test_all_images_of_a_folder(photos, register, form):
    name = register("unlabeled_set: " + form.format(photos))
    records = DatasetCatalog.get(name)
    assert records == [{"file_name": f"{photos}/{n}", "image_id": k} for k, n in enumerate(NAMES, start=1)]
    metadata = MetadataCatalog.get(name)
    assert is_unlabeled(name) and metadata.image_root == str(photos) and metadata.get("json_file") is None
    assert len(get_detection_dataset_dicts(name)) == 3  # Detectron2 does not drop them as empty images


def test_empty_labels_are_not_missing_labels(register, tmp_path):
    assert not is_unlabeled(register(f"labeled_set: {tmp_path}/x.json, {tmp_path}"))


@pytest.mark.parametrize("value", ["photos/", '", "', "{images: }", '{json: "", images: ""}', "{json: a.json}", "a, "])
def test_other_descriptions_are_refused(value):
    with pytest.raises(ConfigError, match="'unlabeled_set' must be `json, images`.*`{images: folder}`"):
        register_datasets(f"unlabeled_set: {value}")
    assert "unlabeled_set" not in DatasetCatalog.list()


def test_an_empty_json_without_quotes_is_invalid_yaml():
    with pytest.raises(ConfigError, match="`name: {images: folder}` for images without labels"):
        register_datasets("unlabeled_set: , photos/")


def test_a_name_that_is_taken(photos, register):
    name = register(f"unlabeled_set: {{images: {photos}}}")
    with pytest.raises(ConfigError, match="'unlabeled_set' is registered already"):
        register_datasets({name: {"images": str(photos)}})


def test_folders_that_cannot_be_used(photos, register, tmp_path):
    (tmp_path / "none").mkdir()
    for folder, error, message in (
        (tmp_path / "gone", InputError, "gone' of images without labels does not exist"),
        (photos / "a.png", InputError, "a.png' of images without labels does not exist"),
        (tmp_path / "none", InputError, "no image in the folder .*none'"),
    ):
        name = register(f"unlabeled_{folder.name[0]}: {{images: {folder}}}")
        with pytest.raises(error, match=message):
            DatasetCatalog.get(name)


@pytest.mark.parametrize("filtered", [True, False])
def test_kept_only_for_models_with_a_teacher(photos, register, labeled, filtered, caplog):
    """FILTER_EMPTY_ANNOTATIONS applies to labeled images only."""
    names = (register("unlabeled_rest", labeled), register(f"unlabeled_set: {{images: {photos}}}"))
    cfg = config()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filtered
    cfg.DATASETS.TRAIN = names
    seen = [record["image_id"] for record in map(training_dataset(cfg).__getitem__, range(5 - filtered))]
    assert seen == [7, 1, 2, 3] if filtered else [7, 8, 1, 2, 3]

    cfg.MODEL.META_ARCHITECTURE = "SOHES"
    assert len(training_dataset(cfg)) == (1 if filtered else 2)
    assert "unlabeled_set: skipped" in caplog.text
    cfg.DATASETS.TRAIN = names[1:]
    with pytest.raises(ValueError, match=r"\(unlabeled_set\) has only images without labels.*sohes label"):
        training_dataset(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SOHESMutualLearning"
    assert len(training_dataset(cfg)) == 3


def test_samples(photos, register, labeled):
    """Unlabeled samples have empty instances and both views; the teacher's view is the photo."""
    cfg = config()
    cfg.CORRECTION.VIEWS.ERASE_PROBABILITY = 1.0
    cfg.DATASETS.TRAIN = (register("unlabeled_rest", labeled), register(f"unlabeled_set: {{images: {photos}}}"))
    loader = build_training_loader(cfg, PseudoLabelDatasetMapper(cfg, is_train=True))
    samples = [sample for batch in islice(loader, 2) for sample in batch]
    assert len(samples) == 12 and {s["image_id"] for s in samples} == {1, 2, 3, 7}
    for sample in samples:
        instances, known = sample["instances"], sample["image_id"] == 7
        assert len(instances) == known and ("height" in sample) == known
        assert instances.gt_masks.tensor.shape == (known, 32, 32)
        assert instances.gt_ancestors.tensor.shape == (known, known)
        assert (sample["image_weak"][:, :24] == (200 if known else 10 * sample["image_id"])).all()
        assert not torch.equal(sample["image"], sample["image_weak"])
    assert not loader.skipped


def test_an_unreadable_photo_is_reported(photos, register):
    (photos / "a.png").write_text("no image")
    cfg = config()
    cfg.DATASETS.TRAIN = (register(f"unlabeled_set: {{images: {photos}}}"),)
    loader = build_training_loader(cfg, PseudoLabelDatasetMapper(cfg, is_train=True))
    assert {s["image_id"] for s in next(iter(loader))} == {2, 3}
    assert list(loader.skipped) == [str(photos / "a.png")]


def test_nothing_is_pasted_onto_unlabeled_photos(photos, register, labeled):
    cfg = config()
    cfg.INPUT.COPY_PASTE.PROBABILITY = 1.0
    unlabeled = DatasetCatalog.get(register(f"unlabeled_set: {{images: {photos}}}"))
    mapper = PseudoLabelDatasetMapper(cfg, is_train=True)
    mapper.set_donors(labeled[:1])
    np.random.seed(0)  # noqa: NPY002
    assert all(len(mapper(unlabeled[0])["instances"]) == 0 for _ in range(5))
    # Nor are they donors: five attempts find the only labeled one of three with a probability of 7/8.
    mapper.set_donors([*unlabeled[1:], {**labeled[0], "file_name": unlabeled[0]["file_name"]}])
    pasted = [bool((mapper(labeled[0])["image_weak"] == 10).any()) for _ in range(40)]
    assert 29 <= sum(pasted) <= 39
