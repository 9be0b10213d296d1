"""A model, a data set and a config that train in milliseconds; imported by tests and by their processes."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from sohes_d2.config.load import load_config
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.data.synthetic.scene import generate_scene

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances

SIZE = (64, 64)


class TinyBackbone(nn.Module):
    """Two "blocks" and an "adapter", with the interface of a backbone that can be pretrained."""

    num_layers = 4

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, stride=4)
        self.block1 = nn.Conv2d(8, 8, 1)
        self.block2 = nn.Conv2d(8, 8, 1)
        self.adapter = nn.Conv2d(8, 8, 1)
        self.loaded_from = None

    def layer_of(self, name):
        return ["patch_embed", "block1", "block2", "adapter"].index(name.split(".")[0])

    def load_pretrained(self, source):
        self.loaded_from = source

    def forward(self, images):
        return self.adapter(self.block2(torch.relu(self.block1(self.patch_embed(images)))))


@META_ARCH_REGISTRY.register()
class TinySegmenter(nn.Module):
    """Predicts the fraction of the image covered by masks, with dropout; at inference one mask per image."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = TinyBackbone()
        self.head = nn.Linear(8, 1)
        self.dropout = cfg.MODEL.VIT.DROP_PATH
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.to(self.device)

    def forward(self, inputs):
        images = torch.stack([x["image"].float() / 255 - 0.5 for x in inputs]) if self.training else None
        if self.training:
            maps = nn.functional.dropout(self.backbone(images), self.dropout)
            predicted = self.head(maps.mean((2, 3)))[:, 0]
            wanted = torch.stack([x["instances"].gt_masks.tensor.any(0).float().mean() for x in inputs])
            error = predicted.float() - wanted
            return {"loss_share": (error**2).mean(), "loss_abs": 0.1 * error.abs().mean()}
        outputs = []
        for x in inputs:
            size = x["height"], x["width"]
            masks = torch.zeros(1, *size, dtype=torch.bool)
            masks[:, : size[0] // 2] = True
            outputs.append({"instances": Instances(size, pred_masks=masks, scores=torch.tensor([0.9]))})
        return outputs


def write_scenes(folder, count=6):
    """Write ``labels.json`` and ``images/`` with synthetic scenes."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    for k in range(count):
        image, forest = generate_scene(0, k, SIZE)
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
        content["images"].append({"id": k + 1, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]})
        content["annotations"] += forest.to_coco(k + 1, first_id=1 + len(content["annotations"]))
    (folder / "labels.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Register the data set "tiny_scenes" of six scenes; yields its folder."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder)
    register_coco_entities("tiny_scenes", str(folder / "labels.json"), str(folder / "images"))
    yield folder
    DatasetCatalog.remove("tiny_scenes")
    MetadataCatalog.remove("tiny_scenes")


def tiny_cfg(output, train=("tiny_scenes",), test=(), **solver) -> CfgNode:
    """A config for `TinySegmenter`; ``solver`` are keys of SOLVER."""
    cfg = load_config("")
    cfg.MODEL.META_ARCHITECTURE = "TinySegmenter"
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = 32
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.MAX_ITER = 20
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.CHECKPOINT_PERIOD = 10
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    cfg.TEST.VISUALIZE = 0
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output)
    return cfg


def sohes_cfg(output, train=("tiny_scenes",), test=(), **solver) -> CfgNode:
    """A config for the real model with a few thousand weights; norms do not depend on the batch."""
    cfg = tiny_cfg(output, train, test, **solver)
    cfg.MODEL.VIT.OPTIONS.depth, cfg.MODEL.VIT.OPTIONS.embed_dim, cfg.MODEL.VIT.OPTIONS.num_heads = 2, 32, 2
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "SOHES"),
            *("MODEL.BACKBONE.NAME", "build_vit_adapter_backbone"),
            *("MODEL.VIT.NAME", "vit_tiny_patch16_224"),
            *("MODEL.VIT.WEIGHTS", "random"),
            *("MODEL.VIT.DROP_PATH", 0.0),
            *("MODEL.VIT_ADAPTER.NUM_INTERACTIONS", 2),
            *("MODEL.VIT_ADAPTER.CONV_INPLANE", 8),
            *("MODEL.VIT_ADAPTER.NUM_HEADS", 2),
            *("MODEL.VIT_ADAPTER.NORM", "GN"),
            *("MODEL.SEM_SEG_HEAD.NAME", "EntityHead"),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1),
            *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.MASK_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
            *("MODEL.SEM_SEG_HEAD.ENC_DIM_FEEDFORWARD", 32),
            *("MODEL.MASK_FORMER.HIDDEN_DIM", 32),
            *("MODEL.MASK_FORMER.NHEADS", 2),
            *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32),
            *("MODEL.MASK_FORMER.DEC_LAYERS", 3),
            *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 12),
            *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
            *("MODEL.ANCESTOR_HEAD.DIM", 8),
            *("INPUT.IMAGE_SIZE", 64),
        ]
    )
    return cfg
