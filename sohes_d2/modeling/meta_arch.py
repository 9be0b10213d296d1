"""The SOHES segmenter as a Detectron2 meta-architecture, and its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList, Instances

from ..structures.crops import NO_CROPS, CropLayers, window_of
from ..structures.score_calibration import check_knots
from .criterion import SetCriterion
from .inference import EntityInference, FoundMasks
from .matcher import HungarianMatcher
from .pixel_decoder import build_pixel_decoder
from .test_time_augmentation import NO_TTA, TTA
from .transformer_decoder import build_transformer_decoder

STRIDE = 32  # of the coarsest map; the input is padded to a multiple of it


@SEM_SEG_HEADS_REGISTRY.register()
class EntityHead(nn.Module):
    """Mask2Former's head (CVPR 2022, section 3.2), with ancestor prediction.

    Submodules are named as in the official implementation, so that published checkpoints load.
    """

    @configurable
    def __init__(self, *, pixel_decoder: Any, predictor: nn.Module, in_features: list[str]):
        """
        Args:
            pixel_decoder: converts the backbone's features to per-pixel embeddings and multi-scale maps.
            predictor: transformer decoder that predicts classes, masks and ancestors.
            in_features: names of the backbone's maps to use.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.in_features = list(in_features)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the backbone {cfg.MODEL.BACKBONE.NAME} has "
                f"{sorted(input_shape)}; for ResNets, set MODEL.RESNETS.OUT_FEATURES"
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, {name: input_shape[name] for name in in_features}),
            "predictor": build_transformer_decoder(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
            "in_features": in_features,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """The predictor's outputs for the backbone's (B, C, H / stride, W / stride) maps."""
        mask_features, _, multi_scale_features = self.pixel_decoder.forward_features(
            {name: features[name] for name in self.in_features}
        )
        return self.predictor(multi_scale_features, mask_features)


@META_ARCH_REGISTRY.register()
class SOHES(nn.Module):
    """Backbone, Mask2Former head and ancestor head (SOHES, section 3.2, self-instruction).

    Trains on `Instances` with ``gt_classes`` (N,), ``gt_masks`` (BitMasks) and, for the hierarchy, ``gt_ancestors``
    (`AncestorMatrix`).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        inference: EntityInference,
        pixel_mean: list[float],
        pixel_std: list[float],
        tta: TTA = NO_TTA,
        crops: CropLayers = NO_CROPS,
    ):
        """
        Args:
            backbone: Detectron2 backbone.
            sem_seg_head: returns "pred_logits", "pred_masks", "pred_ancestors", "aux_outputs" for the backbone's maps.
            criterion: returns losses for these outputs and targets; has a ``weight_dict``.
            inference: converts these outputs to entities.
            pixel_mean: per channel, in the units of the input.
            pixel_std: per channel, in the units of the input.
            tta: test-time augmentation in evaluation.
            crops: crops that are evaluated in addition to the whole image; images are then expected at
                `CropLayers.scale` times the size of the whole image in the model.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.inference = inference
        self.tta = tta
        self.crops = crops
        # Detectron2's Swin Transformer misspells the attribute of this property, which then raises
        self.size_divisibility = max(getattr(backbone, "size_divisibility", 0), STRIDE)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        settings, ancestor = cfg.MODEL.MASK_FORMER, cfg.MODEL.ANCESTOR_HEAD
        weights = {
            "loss_ce": settings.CLASS_WEIGHT,
            "loss_mask": settings.MASK_WEIGHT,
            "loss_dice": settings.DICE_WEIGHT,
        }
        if ancestor.ENABLED:
            weights["loss_ancestor"] = ancestor.WEIGHT
        if settings.DEEP_SUPERVISION:
            suffixes = ["", *(f"_{k}" for k in range(settings.DEC_LAYERS - 1))]
            weights = {name + suffix: weight for suffix in suffixes for name, weight in weights.items()}
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": SetCriterion(
                num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                matcher=HungarianMatcher(
                    cost_class=settings.CLASS_WEIGHT,
                    cost_mask=settings.MASK_WEIGHT,
                    cost_dice=settings.DICE_WEIGHT,
                    num_points=settings.TRAIN_NUM_POINTS,
                ),
                weight_dict=weights,
                eos_coef=settings.NO_OBJECT_WEIGHT,
                num_points=settings.TRAIN_NUM_POINTS,
                oversample_ratio=settings.OVERSAMPLE_RATIO,
                importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
            ),
            "inference": EntityInference(
                max_masks=cfg.TEST.DETECTIONS_PER_IMAGE,
                min_score=cfg.TEST.MIN_SCORE,
                calibration=_calibration(cfg),
                nms_threshold=cfg.TEST.NMS_THRESHOLD,
                ancestor_threshold=ancestor.THRESHOLD,
                theta_cover=ancestor.THETA_COVER,
                theta_cover_alone=cfg.TEST.THETA_COVER,
                max_child_area=ancestor.MAX_CHILD_AREA,
                refinement_radius=cfg.TEST.REFINEMENT.RADIUS,
                refinement_epsilon=cfg.TEST.REFINEMENT.EPSILON,
                chunk_bytes=cfg.TEST.MASK_CHUNK_BYTES,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "tta": TTA.from_config(cfg.TEST.TTA, "TEST.TTA"),
            "crops": CropLayers.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, entities in evaluation.

        Args:
            batched_inputs: per image, "image" (C, H, W) in the units of the config's pixel mean; in training also
                "instances"; otherwise optionally "height", "width", the size of the results.

        Returns:
            The weighted losses by name; or per image the dict of `EntityInference.combine`.
        """
        if self.training:
            images = self.preprocess(batched_inputs)
            outputs = self.segment(images.tensor)
            return self.losses(outputs, self.prepare_targets(batched_inputs, tuple(images.tensor.shape[-2:])))
        sizes = [
            (int(x.get("height", x["image"].shape[-2])), int(x.get("width", x["image"].shape[-1])))
            for x in batched_inputs
        ]
        photos = [x["image"].to(self.device) for x in batched_inputs]
        if self.crops.layers:
            return [self._find_in_crops(photo, size) for photo, size in zip(photos, sizes)]
        return [self.inference.combine([one], size) for one, size in zip(self._find(photos, sizes), sizes)]

    def _find(self, photos: list[Tensor], sizes: list[tuple[int, int]]) -> list[FoundMasks]:
        """The masks of a batch of photos or crops (3, h, w), each as RLEs of its (H, W)."""
        images = self.preprocess([{"image": photo} for photo in photos])
        outputs = self.tta.fuse(self.tta.ask(self.segment, images.tensor))
        ancestors = outputs.get("pred_ancestors")
        return [
            self.inference.find(
                outputs["pred_logits"][k],
                outputs["pred_masks"][k],
                None if ancestors is None else (ancestors[0][k], ancestors[1][k]),
                tuple(images.tensor.shape[-2:]),
                images.image_sizes[k],
                size,
                photos[k],
            )
            for k, size in enumerate(sizes)
        ]

    def _find_in_crops(self, photo: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """The entities of a photo (3, h, w) at `CropLayers.scale`, from the whole photo and its crops, at (H, W)."""
        prepared = (photo.shape[-2], photo.shape[-1])
        seen, layers = self.crops.boxes(prepared)
        found = []
        for boxes in layers:
            for start in range(0, len(boxes), self.crops.batch_size):
                batch = boxes[start : start + self.crops.batch_size]
                windows = [window_of(box, prepared, size) for box in batch]
                crops = [cut(photo[None], box, seen)[0] for box in batch]
                masks = self._find(crops, [(y1 - y0, x1 - x0) for y0, x0, y1, x1 in windows])
                for one, window in zip(masks, windows):
                    kept, rles = self.crops.place(one.rles, window, size, seen)
                    found.append(one.placed(torch.from_numpy(kept), rles))
        return self.inference.combine(found, size, self.crops.nms_threshold)

    def segment(self, images: Tensor) -> dict[str, Any]:
        """The decoder's outputs for normalised and padded images (B, 3, H, W)."""
        return self.sem_seg_head(self.backbone(images))

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The normalised images as a batch, padded at the right and bottom to a multiple of the stride."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def prepare_targets(
        self, batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """The criterion's targets: labels (N,), masks (N, H, W) of the padded size, ancestors (N, N) if known."""
        return [_target(x["instances"].to(self.device), padded_size) for x in batched_inputs]

    def losses(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The criterion's losses times their weights; losses without a weight are omitted."""
        weights = self.criterion.weight_dict
        return {k: loss * weights[k] for k, loss in self.criterion(outputs, targets).items() if k in weights}


def cut(images: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """The pixels of a box of (B, C, H, W), as float32 (B, C, *size)."""
    pixels = images[..., box[0] : box[2], box[1] : box[3]].float()
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def _calibration(cfg: Any) -> list[list[float]]:
    try:
        check_knots(cfg.TEST.SCORE_CALIBRATION)
    except ValueError as error:
        raise ValueError(f"TEST.SCORE_CALIBRATION {error}") from error
    return cfg.TEST.SCORE_CALIBRATION


def _target(instances: Instances, padded_size: tuple[int, int]) -> dict[str, Tensor]:
    masks = getattr(instances.gt_masks, "tensor", instances.gt_masks)
    bottom, right = padded_size[0] - masks.shape[1], padded_size[1] - masks.shape[2]
    target = {"labels": instances.gt_classes, "masks": F.pad(masks.bool(), (0, right, 0, bottom))}
    if instances.has("gt_ancestors"):
        target["ancestors"] = instances.gt_ancestors.tensor
    return target
