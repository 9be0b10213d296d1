"""The whole model: parameter names, losses, training, and outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sohes_d2 import add_sohes_config
from sohes_d2.structures.instance_fields import AncestorMatrix

from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.visualizer import Visualizer

CONFIGS = Path(__file__).parents[2] / "configs"


def small_config(**options):
    """Config of a model with about 100,000 parameters for inputs of 64 pixels."""
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "Base-SOHES.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.VIT.NAME = "vit_tiny_patch16_224"
    cfg.MODEL.VIT.OPTIONS = CfgNode({"depth": 2, "embed_dim": 32, "num_heads": 2})
    cfg.MODEL.VIT.DROP_PATH = 0.0
    cfg.MODEL.VIT_ADAPTER.merge_from_other_cfg(
        CfgNode({"NUM_INTERACTIONS": 2, "CONV_INPLANE": 16, "NUM_HEADS": 2, "NORM": "GN"})
    )
    cfg.MODEL.SEM_SEG_HEAD.merge_from_other_cfg(
        CfgNode({"CONVS_DIM": 32, "MASK_DIM": 32, "TRANSFORMER_ENC_LAYERS": 1, "ENC_DIM_FEEDFORWARD": 64})
    )
    cfg.MODEL.MASK_FORMER.merge_from_other_cfg(
        CfgNode(
            {
                "HIDDEN_DIM": 32,
                "NHEADS": 4,
                "DIM_FEEDFORWARD": 64,
                "DEC_LAYERS": 3,
                "NUM_OBJECT_QUERIES": 12,
                "TRAIN_NUM_POINTS": 256,
            }
        )
    )
    cfg.MODEL.ANCESTOR_HEAD.DIM = 16
    cfg.merge_from_list([part for item in options.items() for part in item])
    return cfg


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def nested_squares():
    """A sample with a square inside another one, and a third one apart."""
    image = torch.full((3, 64, 64), 40, dtype=torch.uint8)
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    for k, (y, x, side, color) in enumerate(
        [(4, 4, 32, (200, 60, 60)), (12, 12, 16, (60, 200, 60)), (44, 40, 16, (60, 60, 220))]
    ):
        masks[k, y : y + side, x : x + side] = True
        image[:, y : y + side, x : x + side] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    instances = Instances((64, 64))
    instances.gt_classes = torch.zeros(3, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    ancestors = torch.zeros(3, 3, dtype=torch.bool)
    ancestors[0, 1] = True
    instances.gt_ancestors = AncestorMatrix(ancestors)
    return {"image": image, "instances": instances}


def test_published_checkpoints_of_mask2former_fit():
    """Names and shapes of all 558 tensors are those of the official model for COCO instances, R-50, 80 classes.

    The digest is of sorted "name [shape]" lines, from the official code.
    """
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "sohes_r50_instruction.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 80
    cfg.MODEL.ANCESTOR_HEAD.ENABLED = False
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    state = build_model(cfg).state_dict()
    lines = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(state.items()))
    assert len(state) == 558
    assert hashlib.sha256(lines.encode()).hexdigest() == (
        "b364fa6472f33a86c254981d6fb75bd6e5fc2b91783585cebee62a2f25c1898d"
    )


def test_losses_are_weighted_and_named():
    model = build_model(small_config()).train()
    losses = model([nested_squares()])
    names = ["loss_ce", "loss_mask", "loss_dice", "loss_ancestor"]
    assert sorted(losses) == sorted(name + suffix for name in names for suffix in ("", "_0", "_1"))
    torch.manual_seed(0)
    doubled = build_model(small_config(**{"MODEL.MASK_FORMER.DICE_WEIGHT": 10.0})).train()
    doubled.load_state_dict(model.state_dict())
    # only the weights are compared, since the matcher uses them too and its assignment may change
    assert doubled.criterion.weight_dict["loss_dice_1"] == 2 * model.criterion.weight_dict["loss_dice_1"] == 10
    model = build_model(
        small_config(**{"MODEL.MASK_FORMER.DEEP_SUPERVISION": False, "MODEL.ANCESTOR_HEAD.ENABLED": False})
    )
    assert sorted(model.train()([nested_squares()])) == ["loss_ce", "loss_dice", "loss_mask"]


def test_learns_masks_and_ancestors_of_one_image():
    model = build_model(small_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    sample = nested_squares()
    for _ in range(60):
        loss = sum(model([sample]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        (out,) = model([{"image": sample["image"], "height": 128, "width": 128}])
    found = np.asarray(out["instances"][:3].pred_masks)
    truth = sample["instances"].gt_masks.tensor.repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
    overlap = (found[:, None] & truth).sum((2, 3)) / (found[:, None] | truth).sum((2, 3))
    assert sorted(overlap.argmax(1).tolist()) == [0, 1, 2]
    assert (overlap.max(1) > 0.75).all(), overlap
    where = {int(t): k for k, t in enumerate(overlap.argmax(1))}
    assert out["forest"].parents[where[1]] == where[0]
    assert out["forest"].parents[where[0]] == -1 and out["forest"].parents[where[2]] != where[0]
    assert out["ancestor_probabilities"][where[0], where[1]] > 0.5 > out["ancestor_probabilities"][where[1], where[0]]


def test_a_batch_of_two_sizes_gives_masks_of_each_size():
    model = build_model(small_config()).eval()
    images = [
        torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8),
        torch.randint(0, 256, (3, 64, 33), dtype=torch.uint8),
    ]
    with torch.no_grad():
        both = model([{"image": images[0], "height": 80, "width": 128}, {"image": images[1]}])
    assert [r["instances"].image_size for r in both] == [(80, 128), (64, 33)]
    for result in both:
        assert tuple(result["forest"].image_size) == result["instances"].image_size
        assert len(result["forest"]) == len(result["instances"]) == len(result["ancestor_probabilities"])
        result["forest"].check()


def test_detectron2_reads_the_result():
    model = build_model(small_config()).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        instances = model([{"image": image}])[0]["instances"]
    annotations = instances_to_coco_json(instances.to("cpu"), 1)
    assert len(annotations) == len(instances) > 0
    assert annotations[0]["score"] == pytest.approx(instances.scores[0].item())
    before = image.permute(1, 2, 0).numpy()
    assert (Visualizer(before).draw_instance_predictions(instances).get_image() != before).any()


def test_an_image_without_labels_trains():
    model = build_model(small_config()).train()
    sample = nested_squares()
    empty = {"image": sample["image"], "instances": sample["instances"][:0]}
    losses = model([empty, empty])
    assert torch.isfinite(sum(losses.values()))
    assert losses["loss_mask"] == losses["loss_dice"] == losses["loss_ancestor"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.sem_seg_head.predictor.parameters())


def test_missing_maps_are_reported():
    cfg = small_config()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with pytest.raises(ValueError, match="MODEL.RESNETS.OUT_FEATURES"):
        build_model(cfg)


def cells_in_view(images):
    """A segmenter with one query per colour, which finds only what fills most of a cell of 4 x 4 input pixels."""
    cells = torch.nn.functional.avg_pool2d(images, 4)
    masks = torch.where(cells[:, :2] > 0.7, 9.0, -9.0)
    logits = torch.tensor([[4.0, -4.0], [3.0, -3.0]]).expand(len(images), 2, 2)
    return {"pred_logits": logits, "pred_masks": masks}


def test_crops_find_what_is_too_small_in_the_whole_photo():
    options = {"MODEL.PIXEL_MEAN": [0.0] * 3, "MODEL.PIXEL_STD": [255.0] * 3, "MODEL.ANCESTOR_HEAD.ENABLED": False}
    crops = {"TEST.CROPS.LAYERS": 1, "TEST.CROPS.OVERLAP": 0.5, "TEST.CROPS.BATCH_SIZE": 3}
    image = torch.zeros(3, 96, 144, dtype=torch.uint8)  # 1.5 times 64 x 96, at which the whole photo is segmented
    image[0, 6:90, 6:138] = 255
    image[1, 51:57, 75:81] = 255  # 4 x 4 pixels at that size, across four cells
    boxes = {}
    for name, more in (("whole", {}), ("crops", crops)):
        model = build_model(small_config(**options, **more)).eval()
        model.segment = cells_in_view
        seen = torch.nn.functional.interpolate(image[None].float(), (64, 96))[0] if name == "whole" else image
        result = model([{"image": seen, "height": 192, "width": 288}])[0]
        assert result["instances"].image_size == (192, 288)
        boxes[name] = result["instances"].pred_boxes.tensor
        areas = [int(mask.sum()) for mask in result["instances"].pred_masks]
        assert len(result["forest"]) == len(areas)
    assert len(boxes["whole"]) == 1, "the large rectangle, which is never whole in a crop"
    assert torch.allclose(boxes["crops"][0], boxes["whole"][0], atol=6)
    small = boxes["crops"][1:]
    assert len(small) >= 1
    for box in small:
        assert torch.allclose(box, torch.tensor([150.0, 102, 162, 114]), atol=5), box
    assert result["forest"].parents.tolist() == [-1] + [0] * len(small)
