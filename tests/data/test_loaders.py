"""A sample of the training stream depends only on the seed and its position; images of a test set come once."""

from __future__ import annotations

import logging
import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.tiny_training import tiny_cfg
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from sohes_d2 import add_sohes_config
from sohes_d2.data.loaders import (
    MAX_BROKEN_IN_A_ROW,
    PositionDataset,
    build_test_loader,
    build_training_loader,
    images_per_process,
    seeded,
    training_dataset,
)
from sohes_d2.data.registration import register_datasets
from sohes_d2.data.training.mapper import PseudoLabelDatasetMapper
from sohes_d2.errors import InputError, SOHESError
from sohes_d2.labels.writer import SEPARATOR, dump_line, image_record, write_label_file
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

IMAGES = 7
BROKEN = 3


@pytest.fixture
def records(tmp_path):
    """Records of noise photos with a tree of three masks each; the photo with index BROKEN is missing."""
    rng = np.random.default_rng(0)
    result = []
    for k in range(IMAGES):
        path = tmp_path / f"{k}.png"
        if k != BROKEN:
            Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
        masks = np.zeros((3, 24, 32), bool)
        masks[0, 2:20, 2:28] = masks[1, 4:16, 4:16] = masks[2, 5:9, 5:9] = True
        annotations = Forest(encode_masks(masks), [-1, 0, 1], (24, 32)).to_coco(k)
        result.append({"file_name": str(path), "image_id": k, "height": 24, "width": 32, "annotations": annotations})
    return result


def config(batch=2, workers=0, seed=11, copy_paste=0.0):
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = seed, batch, workers
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_LABEL_AREA = "RGB", 32, 1
    cfg.INPUT.COPY_PASTE.PROBABILITY = copy_paste
    return cfg


def loader(cfg, dataset, **more):
    return build_training_loader(cfg, PseudoLabelDatasetMapper(cfg, is_train=True), dataset, **more)


def contents(batches):
    """Contents of the samples in a form that can be compared."""
    return [
        (
            sample["image_id"],
            sample["image"].numpy().tobytes(),
            sample["instances"].gt_masks.tensor.numpy().tobytes(),
            sample["instances"].gt_ancestors.tensor.numpy().tobytes(),
        )
        for batch in batches
        for sample in batch
    ]


def ids(batches):
    return [sample["image_id"] for batch in batches for sample in batch]


def test_same_batches_with_any_number_of_workers(records):
    streams = {w: loader(config(workers=w, copy_paste=0.5), records) for w in (0, 1, 2)}
    found = {w: contents(islice(stream, 8)) for w, stream in streams.items()}
    assert found[0] == found[1] == found[2] and len(found[0]) == 16
    assert {w: list(stream.skipped) for w, stream in streams.items()} == dict.fromkeys(
        (0, 1, 2), [records[BROKEN]["file_name"]]
    )


def test_resuming_skips_earlier_batches(records):
    whole = contents(islice(loader(config(), records), 10))
    rest = contents(islice(loader(config(), records, start_iteration=6), 4))
    assert rest == whole[12:]
    assert contents(islice(loader(config(workers=2), records, start_iteration=6), 4)) == rest


def test_processes_share_each_batch(records, monkeypatch):
    alone = list(islice(loader(config(batch=4), records), 5))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(list(islice(loader(config(batch=4), records), 5)))
    for batch, first, second in zip(alone, *shares):
        assert len(first) == len(second) == 2
        assert contents([batch[0::2]]) == contents([first]) and contents([batch[1::2]]) == contents([second])


def test_every_epoch_has_all_images_in_another_order(records):
    good = [r for r in records if r["image_id"] != BROKEN]
    seen = ids(islice(loader(config(batch=6), good), 4))
    epochs = [seen[k : k + 6] for k in range(0, 24, 6)]
    assert all(sorted(epoch) == [r["image_id"] for r in good] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert ids(islice(loader(config(batch=6, seed=12), good), 4)) != seen
    # the same image is augmented differently in each epoch
    samples = contents(islice(loader(config(batch=6), good), 2))
    assert len({content[1] for content in samples}) == 12


def test_the_global_generators_are_unchanged(records):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = contents(islice(loader(config(), records), 2))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert contents(islice(loader(config(), records), 2)) == first


def test_all_three_generators_are_seeded():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    with seeded(3, 4):
        first = draw()
    with seeded(3, 4):
        assert draw() == first
    with seeded(3, 5):
        assert all(a != b for a, b in zip(draw(), first))


def test_broken_images_are_replaced_by_the_next_and_reported_once(records, caplog):
    good = [{**r, "file_name": records[0]["file_name"]} if r["image_id"] == BROKEN else r for r in records]
    order = ids(islice(loader(config(batch=7), good), 1))
    with caplog.at_level(logging.WARNING):
        stream = loader(config(batch=7, workers=2), records)
        replaced = ids(islice(stream, 3))[:7]
    slot = order.index(BROKEN)
    expected = list(order)
    expected[slot] = order[(slot + 1) % 7]
    assert replaced == expected
    path = records[BROKEN]["file_name"]
    assert len([r for r in caplog.records if path in r.getMessage()]) == 1
    assert list(stream.skipped) == [path] and "does not exist" in stream.skipped[path]


def test_nothing_usable(records):
    with pytest.raises(SOHESError, match=rf"1 images in a row.*{BROKEN}.png"):
        next(iter(loader(config(batch=1), [records[BROKEN]])))


def test_the_stream_can_be_sent_to_a_worker(records):
    """As happens on systems that do not fork workers."""
    mapper = PseudoLabelDatasetMapper(config(copy_paste=0.5), is_train=True)
    mapper.set_donors(records)
    stream = PositionDataset(records, mapper, 5)
    sent = pickle.loads(pickle.dumps(stream))
    for position in range(5):
        assert contents([[stream[position][0]]]) == contents([[sent[position][0]]])


def test_giving_up_on_a_large_data_set():
    calls = []
    stream = PositionDataset([{"file_name": f"{k}.jpg"} for k in range(1000)], calls.append, 0)
    with pytest.raises(SOHESError, match="100 images in a row cannot be used, of 1000"):
        stream[0]
    assert len(calls) == MAX_BROKEN_IN_A_ROW == len({record["file_name"] for record in calls})


class Lazy(Dataset):
    """Records that are read on access; the first cannot be read."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if index == 0:
            raise OSError("the shard is gone")
        return self.records[index]


def test_a_record_that_cannot_be_read(records):
    stream = loader(config(batch=7), Lazy(records))
    assert 0 not in ids(islice(stream, 2))
    assert "the shard is gone" in stream.skipped["record 0 of the data set"]


def test_any_mapper(records):
    stream = build_training_loader(config(batch=6), lambda r: None if r["image_id"] == 2 else dict(r), records)
    assert 2 not in ids(islice(stream, 3))
    assert list(stream.skipped) == [records[2]["file_name"]]


@pytest.fixture
def catalog():
    names = []

    def register(name, dataset):
        DatasetCatalog.register(name, lambda: dataset)
        names.append(name)

    register.names = names
    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_data_sets_by_name(records, catalog, tmp_path):
    """A list, a lazy data set and a label file; images known to have no labels are skipped."""
    crowd = [{**a, "iscrowd": 1} for a in records[1]["annotations"]]
    listed = [records[0], {**records[1], "annotations": crowd}, {**records[2], "annotations": []}]
    catalog("stream_list", listed)
    catalog("stream_lazy", Lazy(records[3:5]))
    images = [dump_line(image_record(20 + k, f"{k}.png", 24, 32)) for k in range(3)]
    annotations = [dump_line({**a, "image_id": 20 + k, "id": 10 * k + 1}) for k in (0, 2)
                   for a in Forest(encode_masks(np.ones((1, 24, 32))), [-1], (24, 32)).to_coco(0)]  # fmt: skip
    sections = {"skipped": [], "images": [[SEPARATOR.join(images)]], "annotations": [[SEPARATOR.join(annotations)]]}
    path = str(tmp_path / "labels.json")
    write_label_file(path, {"config": 1}, sections)
    catalog.names.extend(register_datasets({"stream_file": f"{path}, {tmp_path}"}))

    cfg = config(batch=5)
    cfg.DATASETS.TRAIN = ("stream_list", "stream_lazy", "stream_file")
    dataset = training_dataset(cfg)
    assert [dataset[k]["image_id"] for k in (0, 2, 3, 4)] == [0, 4, 20, 22] and len(dataset) == 5
    assert set(ids(islice(loader(cfg, None), 2))) == {0, 4, 20, 22}
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(training_dataset(cfg)) == 3 + 2 + 3
    cfg.DATASETS.TRAIN = ("stream_list",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    DatasetCatalog.get("stream_list")[:] = listed[1:]
    with pytest.raises(ValueError, match="stream_list.*no images with labels"):
        training_dataset(cfg)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def test_unsuitable_data_sets():
    with pytest.raises(ValueError, match="map-style"):
        loader(config(), Endless())
    with pytest.raises(ValueError, match="no images"):
        loader(config(), [])


def test_batches_that_cannot_be_shared():
    assert images_per_process(16, 4) == 4
    with pytest.raises(ValueError, match="16, which is not divisible by 3 processes; set it to 15 or 18"):
        images_per_process(16, 3)
    with pytest.raises(ValueError, match="set it to 4"):
        images_per_process(2, 4)


def test_without_a_seed(records):
    stream = loader(config(seed=-1), records)
    assert contents(islice(stream, 2)) == contents(islice(stream, 2))


@pytest.fixture
def scenes_loader(scenes, tmp_path):
    return build_test_loader(tiny_cfg(tmp_path), "tiny_scenes", dict)


def test_every_image_comes_once_in_order(scenes_loader):
    batches = list(scenes_loader)
    assert [len(batch) for batch in batches] == [1] * 6
    assert [batch[0]["image_id"] for batch in batches] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_process_imports_this_package_before_detectron2(scenes_loader):
    """Detectron2's release needs its patches, and a loader's worker imports in the order of the pickle."""
    content = pickle.dumps(scenes_loader.dataset)
    assert 0 <= content.index(b"sohes_d2") < content.index(b"detectron2")


def test_a_broken_image_is_logged_and_blank(scenes, tmp_path, caplog):
    def mapper(record):
        if record["image_id"] == 2:
            raise InputError("photo.jpg is cut off")
        return {"image_id": record["image_id"], "image": "as it is"}

    batches = list(build_test_loader(tiny_cfg(tmp_path), "tiny_scenes", mapper))
    assert [batch[0]["image_id"] for batch in batches] == [1, 2, 3, 4, 5, 6]
    blank = batches[1][0]
    assert blank["image"].shape == (3, blank["height"], blank["width"])
    assert (blank["image"] == 128).all() and blank["image"].dtype == torch.uint8
    assert "photo.jpg is cut off" in caplog.text
