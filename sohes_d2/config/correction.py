"""Keys of phase 3, self-correction: teacher and student."""

from __future__ import annotations

from typing import Any


def add_correction_config(cfg: Any) -> None:
    """Add the section CORRECTION to a config, in place."""
    CfgNode = type(cfg)

    cfg.CORRECTION = node = CfgNode()
    node.EMA_MOMENTUM = 0.9996  # of the teacher's weights in each iteration [H]
    node.EMA_WARMUP = 0  # iterations over which the momentum rises to its value [D]
    node.EVALUATE = "teacher"  # who answers at inference: teacher | student
    node.INITIAL_WEIGHT = [1.0, 0.0]  # of the losses on the initial labels, at the start and the end [H]
    node.TEACHER_WEIGHT = [2.0, 3.0]  # of the losses on the teacher's labels [H]
    node.WEIGHT_SCHEDULE = "cosine"  # from start to end: cosine [H] | linear | constant
    node.INITIAL_IOU_THRESHOLD = 0.5  # a teacher's label that overlaps an initial one by more is not counted twice [D]
    node.NMS_THRESHOLD = 0.9  # of two teacher's labels that overlap by more, the lower score is dropped [D]
    node.MAX_LABELS = 200  # teacher's labels per image, the best first [D]
    node.MIN_AREA = 16  # pixels of the model's input; smaller masks of the teacher are dropped [D]
    node.REFINEMENT = CfgNode()  # of the teacher's labels on its view, as TEST.REFINEMENT [D]
    node.REFINEMENT.RADIUS = 0
    node.REFINEMENT.EPSILON = 0.01
    node.TEACHER_TTA = CfgNode()  # of its image, as TEST.TTA [D]
    node.TEACHER_TTA.TRANSFORMS = ["same"]
    node.TEACHER_TTA.NMS_THRESHOLD = 0.6
    # Who is whose ancestor among the teacher's labels: teacher (its ancestor head) | coverage | none (not taught) [D]
    node.ANCESTORS = "teacher"

    # The score from which a teacher's mask is a label. dynamic [P; formula D]: TAU_SMALL up to AREA_RATIO_SMALL of
    # the image, TAU_LARGE from AREA_RATIO_LARGE, linear in the logarithm between; fixed; top_k: the best of each image.
    cfg.CORRECTION.THRESHOLD = node = CfgNode()
    node.NAME = "dynamic"
    node.TAU_SMALL = 0.3
    node.TAU_LARGE = 0.7
    node.AREA_RATIO_SMALL = 0.001
    node.AREA_RATIO_LARGE = 0.1
    node.FIXED = 0.5
    node.TOP_K = 50

    cfg.CORRECTION.VIEWS = node = CfgNode()  # the student's strong view; the teacher sees the image as it is [H]
    node.JITTER = 0.4  # brightness, contrast, saturation change by up to this share
    node.HUE = 0.1  # and the hue by up to this share of a turn
    node.JITTER_PROBABILITY = 0.8
    node.GREY_PROBABILITY = 0.2
    node.BLUR_PROBABILITY = 0.5
    node.BLUR_SIGMA = [0.1, 2.0]  # pixels
    node.ERASE_PROBABILITY = 0.5
    node.ERASE_COUNT = 3  # rectangles at most
    node.ERASE_AREA_RATIO = [0.02, 0.1]  # of each, as a share of the image

    cfg.CORRECTION.GUARD = node = CfgNode()  # against a teacher that forgets everything
    node.PERIOD = 50  # iterations over which the teacher's labels are averaged
    node.MIN_LABELS = 0.5  # mean labels per image under which a period counts as collapsed
    node.PATIENCE = 5  # collapsed periods in a row that stop the training
