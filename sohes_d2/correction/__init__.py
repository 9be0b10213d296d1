"""Phase 3, self-correction: a student and its moving average teach each other (SOHES, section 3.3).

Importing it enters `SOHESMutualLearning` and `BorderStudent` in Detectron2's registry of meta-architectures.
"""

from .border_student import BorderStudent
from .hook import MutualLearningHook
from .meta_arch import SOHESMutualLearning

__all__ = ["BorderStudent", "MutualLearningHook", "SOHESMutualLearning"]
