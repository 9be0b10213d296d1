"""Keys of phase 3, self-correction: teacher and student."""

from __future__ import annotations

from typing import Any


def add_correction_config(cfg: Any) -> None:
    """Add the section CORRECTION to a config, in place."""
    CfgNode = type(cfg)

    cfg.CORRECTION = node = CfgNode()
    node.EMA_MOMENTUM = 0.9996  # EMA of the teacher's weights, per iteration [H]
    node.EMA_WARMUP = 0  # iterations over which the momentum increases to its value [D]
    node.EVALUATE = "teacher"  # model used at inference: teacher | student
    node.INITIAL_WEIGHT = [1.0, 0.0]  # loss weight of initial labels, start and end [H]
    node.TEACHER_WEIGHT = [2.0, 3.0]  # loss weight of the teacher's pseudo-labels, start and end [H]
    node.WEIGHT_SCHEDULE = "cosine"  # from start to end: cosine [H] | linear | constant
    node.INITIAL_IOU_THRESHOLD = 0.5  # pseudo-labels with a higher IoU with an initial label get less loss weight [D]
    node.NMS_THRESHOLD = 0.9  # NMS threshold (IoU) of the teacher's pseudo-labels [D]
    node.MAX_LABELS = 200  # maximum number of pseudo-labels per image, best scores first [D]
    node.MIN_AREA = 16  # pixels of the model's input; smaller pseudo-labels are dropped [D]
    node.REFINEMENT = CfgNode()  # of pseudo-labels, on the teacher's view, as in TEST.REFINEMENT [D]
    node.REFINEMENT.RADIUS = 0
    node.REFINEMENT.EPSILON = 0.01
    node.TEACHER_TTA = CfgNode()  # TTA of the teacher, as in TEST.TTA [D]
    node.TEACHER_TTA.TRANSFORMS = ["identity"]
    node.TEACHER_TTA.NMS_THRESHOLD = 0.6
    # Layers of crops of the weak view that are additional inputs of the teacher, with OVERLAP and MARGIN of TEST.CROPS;
    # 0: none. They find small entities, and the score of a mask becomes its mean support by the view and its crops [D].
    node.TEACHER_CROPS = 0
    # Source of the pseudo-labels' ancestors: teacher (its ancestor head) | coverage | none (no ancestor loss) [D]
    node.ANCESTORS = "teacher"

    # Score threshold of pseudo-labels. dynamic [P; formula D]: TAU_SMALL up to AREA_RATIO_SMALL of the image, TAU_LARGE
    # from AREA_RATIO_LARGE, linear in the logarithm of the area between; fixed: FIXED; top_k: TOP_K best of each image.
    cfg.CORRECTION.THRESHOLD = node = CfgNode()
    node.NAME = "dynamic"
    node.TAU_SMALL = 0.3
    node.TAU_LARGE = 0.7
    node.AREA_RATIO_SMALL = 0.001
    node.AREA_RATIO_LARGE = 0.1
    node.FIXED = 0.5
    node.TOP_K = 50

    cfg.CORRECTION.VIEWS = node = CfgNode()  # the student's strong view; the teacher gets the unchanged image [H]
    node.JITTER = 0.4  # largest relative change of brightness, contrast and saturation
    node.HUE = 0.1  # largest change of the hue, as a share of the hue circle
    node.JITTER_PROBABILITY = 0.8
    node.GREY_PROBABILITY = 0.2
    node.BLUR_PROBABILITY = 0.5
    node.BLUR_SIGMA = [0.1, 2.0]  # pixels
    node.ERASE_PROBABILITY = 0.5
    node.ERASE_COUNT = 3  # maximum number of rectangles
    node.ERASE_AREA_RATIO = [0.02, 0.1]  # area of each, as a share of the image

    cfg.CORRECTION.GUARD = node = CfgNode()  # collapse detection of the teacher
    node.PERIOD = 50  # iterations over which the number of pseudo-labels is averaged
    node.MIN_LABELS = 0.5  # mean pseudo-labels per image below which a period counts as collapsed
    node.PATIENCE = 5  # number of consecutive collapsed periods after which training stops
