"""Self-distillation without labels: DINO's image loss, iBOT's patch loss and a dense contrastive loss across crops.

In the dense contrastive loss, the same point in two crops is a positive pair, other points and photos are negatives
(Wang et al., Dense contrastive learning, CVPR 2021; VICRegL, Bardes et al., NeurIPS 2022). The points of a pair are a
small random offset apart: patches that often occur side by side likely belong together (Isola et al., Learning visual
groups from co-occurrences in space and time, 2015). Every pair of points is a sample, so few photos suffice.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable

from .vit import build_vit, normalization

try:
    from lightly.loss import DINOLoss, IBOTPlusPlusPatchLoss, NTXentLoss
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
    from lightly.models.utils import random_block_mask, update_momentum
    from lightly.utils.scheduler import cosine_schedule
except ImportError as error:
    raise ImportError(
        f"pretraining needs the library lightly ({error}): pip install 'sohes_d2[pretrain]', or, to keep installed "
        "packages unchanged, pip install --no-deps 'lightly>=1.6'"
    ) from error


class Branch(nn.Module):
    """A ViT with the heads of the enabled losses; used for both the student and the teacher."""

    def __init__(self, vit: VisionTransformer, image_head: Any, patch_head: Any):
        """Each head is a `DINOProjectionHead`, or None if its loss is disabled."""
        super().__init__()
        # Fixed sine-cosine position embeddings: learned ones need more photos and interpolate worse to larger inputs.
        self.encoder = MaskedVisionTransformerTIMM(vit, weight_initialization="skip")
        self.image_head = image_head
        self.patch_head = patch_head

    def forward(self, views: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens (B, prefix + N, C) of normalised square views (B, 3, S, S); ``mask`` (B, prefix + N) bool."""
        return self.encoder.encode(views, mask=mask)


class SelfDistillation(nn.Module):
    """A student trained to predict the outputs of its EMA teacher for other crops (Caron et al., DINO, ICCV 2021) and
    for masked patches (Zhou et al., iBOT, ICLR 2022), with a dense contrastive loss.

    Attributes:
        student: the trained `Branch`.
        teacher: its EMA, which is exported.
    """

    mean: Tensor
    std: Tensor

    @configurable
    def __init__(
        self,
        *,
        vit: VisionTransformer,
        total_iterations: int,
        image_weight: float = 1.0,
        patch_weight: float = 1.0,
        visible_weight: float = 0.0,
        dense_weight: float = 1.0,
        prototypes: int = 1024,
        head_hidden: int = 512,
        head_bottleneck: int = 128,
        student_temperature: float = 0.1,
        teacher_temperature: Sequence[float] = (0.04, 0.07),
        temperature_warmup: int = 0,
        center_momentum: float = 0.9,
        ema_momentum: Sequence[float] = (0.99, 1.0),
        mask_views: float = 0.5,
        mask_ratio: Sequence[float] = (0.1, 0.5),
        points: int = 16,
        point_sigma: float = 0.5,
        dense_temperature: float = 0.1,
        freeze_last_layer: int = 0,
    ):
        """
        Args:
            vit: ViT of the student; the teacher starts as a copy.
            total_iterations: length of the schedules.
            image_weight: weight of the image loss (DINO); 0 disables it, its head and the local views.
            patch_weight: weight of the patch loss (iBOT); 0 disables it, its head and the masks.
            visible_weight: weight of visible patches within the patch loss (iBOT++).
            dense_weight: weight of the dense contrastive loss; 0 disables it.
            prototypes: output width of the heads.
            head_hidden: hidden width of the heads.
            head_bottleneck: width before the last layer of the heads.
            student_temperature: softmax temperature of the student; lower is sharper.
            teacher_temperature: start and end, linear over ``temperature_warmup`` iterations.
            temperature_warmup: length of this warm-up in iterations.
            center_momentum: momentum of the center that is subtracted from teacher outputs to avoid collapse.
            ema_momentum: momentum of the teacher, start and end, cosine over the training.
            mask_views: share of the global views with masked patches.
            mask_ratio: smallest and largest share of masked patches in a view.
            points: points per photo for the dense contrastive loss.
            point_sigma: offset between the two points of a pair, standard deviation per axis in patches.
            dense_temperature: temperature of the dense contrastive loss.
            freeze_last_layer: number of initial iterations in which the last layers of the heads are frozen.

        Raises:
            ValueError: all weights are 0, or the image loss is enabled for a ViT without class token.
        """
        super().__init__()
        if not max(image_weight, patch_weight, dense_weight) > 0:
            raise ValueError("All weights of PRETRAINING.LOSSES are 0: nothing to train. Set one above 0.")
        self.weights = {"image": image_weight, "patch": patch_weight, "dense": dense_weight}
        self.visible_weight = visible_weight
        self.total_iterations = total_iterations
        self.teacher_temperature, self.temperature_warmup = tuple(teacher_temperature), temperature_warmup
        self.ema_momentum = tuple(ema_momentum)
        self.mask_views, self.mask_ratio = mask_views, tuple(mask_ratio)
        self.points, self.point_sigma = points, point_sigma
        self.freeze_last_layer = freeze_last_layer
        self.iteration = 0

        def head(weight: float) -> nn.Module | None:
            if weight <= 0:
                return None
            with warnings.catch_warnings():  # torch warns about the weight norm that lightly uses
                warnings.simplefilter("ignore", FutureWarning)
                return DINOProjectionHead(vit.embed_dim, head_hidden, head_bottleneck, prototypes)

        self.student = Branch(vit, head(image_weight), head(patch_weight))
        # Distributed training fails with parameters that do not affect the loss.
        self.student.encoder.mask_token.requires_grad_(patch_weight > 0)
        # The heads cannot be deep-copied: weight norm stores a computed tensor in them.
        self.teacher = Branch(copy.deepcopy(vit), head(image_weight), head(patch_weight)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.image_loss = DINOLoss(prototypes, student_temp=student_temperature, center_momentum=center_momentum)
        self.patch_loss = IBOTPlusPlusPatchLoss(
            prototypes, student_temp=student_temperature, center_momentum=center_momentum
        )
        self.dense_loss = NTXentLoss(dense_temperature, gather_distributed=True)
        self.prefix: int = vit.num_prefix_tokens
        if image_weight > 0 and not self.prefix:
            raise ValueError("The image loss needs a class token: set PRETRAINING.LOSSES.IMAGE 0 for this MODEL.VIT.")
        self.patch = int(vit.patch_embed.feat_ratio())
        mean, std = normalization(vit)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node, losses, vit = cfg.PRETRAINING, cfg.PRETRAINING.LOSSES, cfg.MODEL.VIT
        return {
            "vit": build_vit(vit.NAME, vit.OPTIONS, vit.DROP_PATH),
            "total_iterations": cfg.SOLVER.MAX_ITER,
            "image_weight": losses.IMAGE,
            "patch_weight": losses.PATCH,
            "visible_weight": losses.VISIBLE,
            "dense_weight": losses.DENSE,
            "prototypes": node.HEAD.PROTOTYPES,
            "head_hidden": node.HEAD.HIDDEN_DIM,
            "head_bottleneck": node.HEAD.BOTTLENECK_DIM,
            "freeze_last_layer": node.HEAD.FREEZE_LAST_LAYER,
            "student_temperature": losses.STUDENT_TEMPERATURE,
            "teacher_temperature": losses.TEACHER_TEMPERATURE,
            "temperature_warmup": losses.TEMPERATURE_WARMUP,
            "center_momentum": losses.CENTER_MOMENTUM,
            "ema_momentum": node.EMA_MOMENTUM,
            "mask_views": node.MASK.VIEWS,
            "mask_ratio": node.MASK.RATIO,
            "points": losses.DENSE_POINTS,
            "point_sigma": losses.DENSE_SIGMA,
            "dense_temperature": losses.DENSE_TEMPERATURE,
        }

    @property
    def vit(self) -> VisionTransformer:
        """The ViT that is exported: the teacher's."""
        return self.teacher.encoder.vit

    @property
    def student_vit(self) -> VisionTransformer:
        """The ViT that is trained."""
        return self.student.encoder.vit

    def begin(self, iteration: int) -> None:
        """Set the current iteration for the schedules."""
        self.iteration = iteration

    def temperature(self) -> float:
        """The teacher's temperature in this iteration."""
        start, end = self.teacher_temperature
        if self.iteration >= self.temperature_warmup:
            return end
        return start + (end - start) * self.iteration / self.temperature_warmup

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the teacher, the EMA of the student."""
        start, end = self.ema_momentum
        momentum = cosine_schedule(self.iteration, self.total_iterations, start, end)
        update_momentum(self.student, self.teacher, float(momentum))

    def after_backward(self) -> None:
        """Freeze the last layers of the heads in the first iterations, when their gradients are largest."""
        for head in (self.student.image_head, self.student.patch_head):
            if head is not None and self.iteration < self.freeze_last_layer:
                for parameter in head.last_layer.parameters():
                    parameter.grad = None

    def forward(self, batch: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the weighted losses of a batch of `views.MultiCrop` samples and update the centers."""
        # all first views, then all second views
        views = self._normalized(torch.stack([sample["global"] for sample in batch], dim=1).flatten(0, 1))
        mask = self._mask(len(views), views.shape[-1] // self.patch) if self.weights["patch"] else None
        # class and register tokens are never masked
        student = self.student(views, None if mask is None else F.pad(mask.flatten(1), (self.prefix, 0)))
        losses = {}
        if self.weights["image"] or self.weights["patch"]:
            with torch.no_grad():
                teacher = self.teacher(views)
            if self.weights["image"]:
                losses["loss_image"] = self._image_term(student, teacher, batch)
            if mask is not None:
                losses["loss_patch"] = self._patch_term(student, teacher, mask)
        if self.weights["dense"]:
            losses["loss_dense"] = self._dense_contrast(student, batch)
        return {key: self.weights[key[len("loss_") :]] * value for key, value in losses.items()}

    def _image_term(self, student: Tensor, teacher: Tensor, batch: list[Mapping[str, Tensor]]) -> Tensor:
        count = len(batch)
        class_tokens = [student[:, 0]]
        if len(batch[0]["local"]):
            local = self._normalized(torch.stack([sample["local"] for sample in batch], dim=1).flatten(0, 1))
            class_tokens.append(self.student(local)[:, 0])
        predictions = self.student.image_head(torch.cat(class_tokens)).float().split(count)
        with torch.no_grad():
            targets = self.teacher.image_head(teacher[:, 0]).float().split(count)
        return self.image_loss(list(targets), list(predictions), teacher_temp=self.temperature())

    def _patch_term(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        flat = mask.flatten(1)
        of_student, of_teacher = student[:, self.prefix :], teacher[:, self.prefix :]
        if not self.visible_weight:  # then views without masked patches do not contribute
            masked = flat.any(dim=1)
            of_student, of_teacher, flat = of_student[masked], of_teacher[masked], flat[masked]
        predictions = self.student.patch_head(of_student).float()
        with torch.no_grad():
            targets = self.teacher.patch_head(of_teacher).float()
        return self.patch_loss(targets, predictions, flat, self.temperature(), self.visible_weight)

    def _dense_contrast(self, student: Tensor, batch: list[Mapping[str, Tensor]]) -> Tensor:
        boxes = torch.stack([sample["boxes"] for sample in batch]).to(self.mean.device)
        flips = torch.stack([sample["flips"] for sample in batch]).to(self.mean.device)
        patches = student[:, self.prefix :].float()
        side = round(patches.shape[1] ** 0.5)
        maps = patches.transpose(1, 2).unflatten(2, (side, side)).split(len(batch))
        places = common_places(boxes, self.points)
        first = features_at(maps[0], places, boxes[:, 0], flips[:, 0])
        moved = moved_apart(places, boxes[:, 1], 1 / side, self.point_sigma)
        second = features_at(maps[1], moved, boxes[:, 1], flips[:, 1])
        return self.dense_loss(first.flatten(0, 1), second.flatten(0, 1))

    def _mask(self, views: int, side: int) -> Tensor:
        """Random masks (views, side, side) bool; True: masked."""
        low, high = self.mask_ratio
        share = max(self.mask_views, 1.001 / views)  # at least one view for any batch size
        block = min(4, max(1, int(low * side**2)))
        mask = random_block_mask((views, side, side), share, low, high, min_num_masks_per_block=block)
        return mask.to(self.mean.device)

    def _normalized(self, views: Tensor) -> Tensor:
        return (views.to(self.mean.device).float() - self.mean) / self.std


def common_places(boxes: Tensor, points: int) -> Tensor:
    """Sample random points visible in both global views of a photo.

    Args:
        boxes: (B, 2, 4), the overlapping views as (y0, x0, y1, x1) in pixels of the photo.
        points: number of points per photo.

    Returns:
        (B, points, 2) as (y, x) in the photo.
    """
    low = boxes[..., :2].amax(dim=1)
    high = boxes[..., 2:].amin(dim=1)
    random = torch.rand(len(boxes), points, 2, device=boxes.device)
    return low[:, None] + random * (high - low)[:, None]


def moved_apart(places: Tensor, boxes: Tensor, patch_share: float, sigma: float) -> Tensor:
    """Move ``places`` (B, P, 2) by Gaussian noise of std ``sigma`` patches, clipped to the views ``boxes`` (B, 4).

    ``patch_share`` is the side of a patch divided by the side of the view.
    """
    if sigma <= 0:
        return places
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    step = torch.randn_like(places) * (high - low) * (patch_share * sigma)
    return torch.minimum(torch.maximum(places + step, low), high)


def features_at(maps: Tensor, places: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Sample features of views bilinearly at points of the photo.

    Args:
        maps: (B, C, rows, cols), one view per photo.
        places: (B, P, 2) as (y, x) in the photo.
        boxes: (B, 4) of the views, (y0, x0, y1, x1) in the photo.
        flips: (B,) bool, whether the view is mirrored left to right.

    Returns:
        (B, P, C).
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    within = 2 * (places - low) / (high - low) - 1  # -1..1 over the view
    y, x = within.unbind(-1)
    x = torch.where(flips[:, None], -x, x)
    grid = torch.stack([x, y], dim=-1)[:, :, None]
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[..., 0].transpose(1, 2)
