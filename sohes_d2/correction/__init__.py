"""Phase 3, self-correction: mutual learning of a student and its EMA teacher (SOHES, section 3.3).

Importing it registers `SOHESMutualLearning` and `BorderStudent` as meta-architectures of Detectron2.
"""

from .border_student import BorderStudent
from .hooks import MutualLearningHook
from .meta_arch import SOHESMutualLearning

__all__ = ["BorderStudent", "MutualLearningHook", "SOHESMutualLearning"]
