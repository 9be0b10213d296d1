"""Keys of self-supervised backbone pretraining, before phase 1 (sohes pretrain)."""

from __future__ import annotations

from typing import Any


def add_pretraining_config(cfg: Any) -> None:
    """Add the section PRETRAINING to a config, in place.

    The ViT is that of MODEL.VIT (NAME, OPTIONS, DROP_PATH; WEIGHTS to go on from some), the optimizer that of SOLVER.
    """
    CfgNode = type(cfg)

    cfg.PRETRAINING = node = CfgNode()
    node.METHOD = "self_distillation"  # self_distillation | distillation (of the features of TEACHER)
    node.IMAGES = []  # folders of photos, lists of paths, or COCO files, whose annotations are not read
    node.STORED_SIDE = 0  # pixels: photos are shrunk to this shorter side when they are read; 0: not
    node.CACHE_MEGABYTES = 2048  # of decoded photos that each process keeps
    node.EMA_MOMENTUM = [0.996, 1.0]  # of the teacher, cosine from the start to the end [DINO]
    node.OUTPUT_DTYPE = "float16"  # of the weights that are written: float32 | float16 | bfloat16

    cfg.PRETRAINING.VIEWS = node = CfgNode()  # crops of a photo; areas are shares of it, sizes are pixels
    node.GLOBAL_SIZE = 224  # of the two large ones [DINO]
    node.GLOBAL_SCALE = [0.32, 1.0]  # [iBOT]
    node.LOCAL_COUNT = 8  # of the small ones, which only the image term uses [DINO]
    node.LOCAL_SIZE = 96  # [DINO]
    node.LOCAL_SCALE = [0.05, 0.32]  # [iBOT]
    node.MIN_OVERLAP = 0.2  # share of the smaller large crop that the other shows, too [D]
    node.JITTER = 0.4  # brightness, contrast, saturation change by up to this share [DINO]
    node.HUE = 0.1  # and the hue by up to this share of a turn [DINO]
    node.JITTER_PROBABILITY = 0.8  # [DINO]
    node.GREY_PROBABILITY = 0.2  # [DINO]
    node.BLUR_PROBABILITY = 0.5  # [DINO has 1.0 and 0.1 for the two large crops]
    node.BLUR_SIGMA = [0.1, 2.0]  # pixels [DINO]

    cfg.PRETRAINING.HEAD = node = CfgNode()  # between tokens and losses, thrown away afterwards
    node.PROTOTYPES = 8192  # outputs [iBOT]
    node.HIDDEN_DIM = 2048  # [DINO]
    node.BOTTLENECK_DIM = 256  # [DINO]
    node.FREEZE_LAST_LAYER = 0  # iterations in which the last layer is frozen [DINO has an epoch]

    cfg.PRETRAINING.LOSSES = node = CfgNode()
    node.IMAGE = 1.0  # weight of the image term [DINO]; 0: none, and no small crops
    node.PATCH = 1.0  # weight of the term on hidden patches [iBOT]; 0: none
    node.VISIBLE = 0.0  # and, within it, on patches that were not hidden
    node.DENSE = 0.0  # weight of the dense contrastive loss [D]: learns most from few photos and iterations
    node.DENSE_POINTS = 16  # places per photo
    node.DENSE_SIGMA = 0.5  # patches by which two places that belong together lie apart
    node.DENSE_TEMPERATURE = 0.1
    node.STUDENT_TEMPERATURE = 0.1  # [DINO]
    node.TEACHER_TEMPERATURE = [0.04, 0.07]  # from, to [DINO]
    node.TEMPERATURE_WARMUP = 0  # iterations from one to the other
    node.CENTER_MOMENTUM = 0.9  # of the mean that is taken off the teacher's outputs [DINO]

    cfg.PRETRAINING.MASK = node = CfgNode()  # patches hidden from the student
    node.VIEWS = 0.5  # share of the large crops in which some are [iBOT]
    node.RATIO = [0.1, 0.5]  # share of the patches, from, to [iBOT]

    cfg.PRETRAINING.TEACHER = node = CfgNode()  # of METHOD distillation: a frozen ViT
    node.NAME = "vit_base_patch8_224.dino"  # of timm
    node.WEIGHTS = ""  # "": the hub's for NAME; or a hub name, URL or file
    node.OPTIONS = CfgNode(new_allowed=True)  # more arguments of timm.create_model
    node.RESOLUTION = 1.0  # rows of the teacher's grid over those of the student's

    # Segment AUC every TEST.EVAL_PERIOD iterations; the best weights are kept. Labels are for measuring only.
    cfg.PRETRAINING.CHECK = node = CfgNode()
    node.JSON = ""  # a COCO json; "": no check, and the last weights count as the best
    node.IMAGES = ""  # the folder of its images
    node.MAX_IMAGES = 50  # spread evenly over the file; 0: all
    node.FACET = "token"  # what is checked and later used: query | key | value | token (of the last block)
    node.TOKEN_BUDGET = 1600  # most patches per image
