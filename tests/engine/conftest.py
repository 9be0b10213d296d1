"""Data sets for the tests of training."""

import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

# Processes that a test starts find the module by this, too.
sys.path.insert(0, str(Path(__file__).parent))

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
