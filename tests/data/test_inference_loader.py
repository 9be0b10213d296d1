"""Loading the images of a test set."""

import pickle

import pytest
import torch
from helpers.tiny_training import tiny_cfg

from sohes_d2.data.inference_loader import build_test_loader
from sohes_d2.errors import InputError


@pytest.fixture
def loader(scenes, tmp_path):
    return build_test_loader(tiny_cfg(tmp_path), "tiny_scenes", dict)


def test_every_image_comes_once_in_order(loader):
    batches = list(loader)
    assert [len(batch) for batch in batches] == [1] * 6
    assert [batch[0]["image_id"] for batch in batches] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_process_imports_this_package_before_detectron2(loader):
    """Detectron2's release needs its patches, and a loader's worker imports in the order of the pickle."""
    content = pickle.dumps(loader.dataset)
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
