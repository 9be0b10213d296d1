"""Distillation of patch features from a large self-supervised ViT, such as DINO or DINOv2, into a small one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable

from ..errors import WeightsError
from ..exploration.features.base import freeze
from ..weights import load_weights
from ..weights.layouts import resampling_of, use_official_resampling
from .vit import build_vit, normalization


class FeatureDistillation(nn.Module):
    """Trains a student ViT, with a linear layer on its patch tokens, to predict the patch tokens of a frozen teacher.

    The loss is the cosine distance. The teacher gets the same crop, resized so that its grid is ``resolution`` times
    the student's; if the grids differ, the teacher's feature map is resized to the student's.

    Attributes:
        vit: the student, which is exported.
        teacher: the frozen teacher.
    """

    student_mean: Tensor
    student_std: Tensor
    teacher_mean: Tensor
    teacher_std: Tensor

    @configurable
    def __init__(self, *, vit: VisionTransformer, teacher: VisionTransformer, resolution: float = 1.0):
        """
        Args:
            vit: the student.
            teacher: the teacher, with weights.
            resolution: size of the teacher's grid relative to the student's, per axis.

        Raises:
            ValueError: ``resolution`` is not positive.
        """
        super().__init__()
        if not resolution > 0:
            raise ValueError(f"PRETRAINING.TEACHER.RESOLUTION {resolution} is not above 0.")
        self.vit = vit
        # Only patch tokens are distilled; parameters that only the class token uses get no gradient.
        self.teacher = freeze(teacher, torch.device("cpu"))
        self.projection = nn.Linear(vit.embed_dim, teacher.embed_dim)
        self.resolution = resolution
        self.register_load_state_dict_post_hook(_without_teacher)
        for role, network in (("student", vit), ("teacher", teacher)):
            mean, std = normalization(network)
            self.register_buffer(f"{role}_mean", mean, persistent=False)
            self.register_buffer(f"{role}_std", std, persistent=False)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node, vit = cfg.PRETRAINING.TEACHER, cfg.MODEL.VIT
        return {
            "vit": build_vit(vit.NAME, vit.OPTIONS, vit.DROP_PATH),
            "teacher": load_teacher(node.NAME, node.WEIGHTS, node.OPTIONS),
            "resolution": node.RESOLUTION,
        }

    @property
    def student_vit(self) -> VisionTransformer:
        """The ViT that is trained."""
        return self.vit

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """State without the frozen teacher."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not _is_teacher_key(key)}

    def train(self, mode: bool = True) -> FeatureDistillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Mean of 1 - cosine between student and teacher over the patches of the global views of `views.MultiCrop`."""
        views = torch.cat([sample["global"] for sample in batch]).to(self.student_mean.device).float()
        predictions = self.projection(self.student_maps(views))
        with torch.no_grad():
            targets = self.teacher_maps(views, predictions.shape[1:3])
        return {"loss_distillation": 1 - F.cosine_similarity(predictions.float(), targets.float(), dim=-1).mean()}

    def student_maps(self, views: Tensor) -> Tensor:
        """Student features (B, rows, cols, C) of views (B, 3, H, W) in 0..255."""
        return patch_map(self.vit, (views - self.student_mean) / self.student_std)

    def teacher_maps(self, views: Tensor, grid: tuple[int, int]) -> Tensor:
        """Teacher features (B, rows, cols, C) of views (B, 3, H, W) in 0..255, on the student's grid (rows, cols)."""
        patch = int(self.teacher.patch_embed.feat_ratio())
        size = [max(1, round(cells * self.resolution)) * patch for cells in grid]
        if list(views.shape[-2:]) != size:
            views = F.interpolate(views, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        maps = patch_map(self.teacher, (views - self.teacher_mean) / self.teacher_std)
        if tuple(maps.shape[1:3]) != tuple(grid):
            maps = maps.permute(0, 3, 1, 2).float()
            maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        return maps


def _is_teacher_key(key: str) -> bool:
    return "teacher" in key.split(".")


def _without_teacher(_: nn.Module, incompatible: Any) -> None:
    """Remove the teacher from the missing keys: checkpoints do not contain it."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not _is_teacher_key(key)]


def patch_map(vit: VisionTransformer, views: Tensor) -> Tensor:
    """Patch tokens after the final norm, (B, rows, cols, C), of normalised views (B, 3, H, W)."""
    patch = int(vit.patch_embed.feat_ratio())
    tokens = vit.forward_features(views)[:, vit.num_prefix_tokens :]
    return tokens.unflatten(1, (views.shape[-2] // patch, views.shape[-1] // patch))


def load_teacher(name: str, weights: str, options: Mapping[str, Any]) -> VisionTransformer:
    """Build the teacher and load its weights; "" loads timm's pretrained weights of that name.

    Raises:
        WeightsError: weights that are not available or do not match the architecture.
        ValueError: unknown ViT.
    """
    try:
        teacher = build_vit(name, options)
    except ValueError as error:
        raise ValueError(str(error).replace("MODEL.VIT.", "PRETRAINING.TEACHER.")) from error
    if resampling_of(name) == "official":
        use_official_resampling(teacher)
    report = load_weights(teacher, weights or f"hub:{name}")
    if report.missing:
        raise WeightsError(
            f"Weights {report.origin} lack {len(report.missing)} tensors of {name!r} "
            f"({', '.join(report.missing[:4])}). Set PRETRAINING.TEACHER.NAME to the architecture that they were made "
            "with."
        )
    return teacher
