"""Phase 3, self-correction: a student and its moving average teach each other (SOHES, section 3.3).

Importing it enters `SOHESMutualLearning` in Detectron2's registry of meta-architectures.
"""

from .guard import CollapseError
from .hook import MutualLearningHook
from .meta_arch import SOHESMutualLearning

__all__ = ["CollapseError", "MutualLearningHook", "SOHESMutualLearning"]
