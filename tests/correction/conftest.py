"""Data sets for the tests of phase 3's training."""

import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

# Processes that a test starts find the modules by this, too.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "engine")]

from tiny_training import write_scenes  # noqa: E402

from sohes_d2.data.registration import register_coco_entities  # noqa: E402


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The registered data set "tiny_scenes" of six scenes; its folder."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder)
    register_coco_entities("tiny_scenes", str(folder / "labels.json"), str(folder / "images"))
    yield folder
    DatasetCatalog.remove("tiny_scenes")
    MetadataCatalog.remove("tiny_scenes")
