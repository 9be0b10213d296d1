"""The only module that imports lightly, which provides losses, heads, masks and schedules."""

from __future__ import annotations

try:
    from lightly.loss import DINOLoss, IBOTPlusPlusPatchLoss, NegativeCosineSimilarity, NTXentLoss
    from lightly.models.modules.heads import DINOProjectionHead
    from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
    from lightly.models.utils import random_block_mask, update_momentum
    from lightly.utils.scheduler import cosine_schedule
except ImportError as error:
    raise ImportError(
        f"pretraining needs the library lightly ({error}): pip install 'sohes_d2[pretrain]', or, to keep installed "
        "packages unchanged, pip install --no-deps 'lightly>=1.6'"
    ) from error

__all__ = [
    "DINOLoss",
    "DINOProjectionHead",
    "IBOTPlusPlusPatchLoss",
    "MaskedVisionTransformerTIMM",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "cosine_schedule",
    "random_block_mask",
    "update_momentum",
]
