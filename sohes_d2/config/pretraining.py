"""Keys of self-supervised backbone pretraining, before phase 1 (sohes pretrain)."""

from __future__ import annotations

from typing import Any


def add_pretraining_config(cfg: Any) -> None:
    """Add the section PRETRAINING to a config, in place.

    The ViT is that of MODEL.VIT (NAME, OPTIONS, DROP_PATH; WEIGHTS to initialise it), the optimizer that of SOLVER.
    """
    CfgNode = type(cfg)

    cfg.PRETRAINING = node = CfgNode()
    node.METHOD = "self_distillation"  # self_distillation | distillation (of the features of TEACHER)
    node.IMAGES = []  # folders of photos, lists of paths, or COCO files, whose annotations are not read
    node.STORED_SIDE = 0  # pixels: photos are downsized to this shorter side when read; 0: never
    node.CACHE_MEGABYTES = 2048  # cache of decoded photos, per process
    node.EMA_MOMENTUM = [0.996, 1.0]  # of the teacher, cosine from start to end [DINO]
    node.OUTPUT_DTYPE = "float16"  # of the written weights: float32 | float16 | bfloat16

    cfg.PRETRAINING.VIEWS = node = CfgNode()  # crops of a photo; areas are shares of it, sizes are pixels
    node.GLOBAL_SIZE = 224  # of the two global crops [DINO]
    node.GLOBAL_SCALE = [0.32, 1.0]  # [iBOT]
    node.LOCAL_COUNT = 8  # local crops, used only by the image loss [DINO]
    node.LOCAL_SIZE = 96  # [DINO]
    node.LOCAL_SCALE = [0.05, 0.32]  # [iBOT]
    node.MIN_OVERLAP = 0.2  # minimum share of the smaller global crop that the other one covers [D]
    node.JITTER = 0.4  # largest relative change of brightness, contrast and saturation [DINO]
    node.HUE = 0.1  # largest change of the hue, as a share of the hue circle [DINO]
    node.JITTER_PROBABILITY = 0.8  # [DINO]
    node.GREY_PROBABILITY = 0.2  # [DINO]
    node.BLUR_PROBABILITY = 0.5  # [DINO: 1.0 and 0.1 for the two global crops]
    node.BLUR_SIGMA = [0.1, 2.0]  # pixels [DINO]

    cfg.PRETRAINING.HEAD = node = CfgNode()  # projection between tokens and losses, discarded after training
    node.PROTOTYPES = 8192  # number of outputs [iBOT]
    node.HIDDEN_DIM = 2048  # [DINO]
    node.BOTTLENECK_DIM = 256  # [DINO]
    node.FREEZE_LAST_LAYER = 0  # initial iterations in which the last layer is frozen [DINO: one epoch]

    cfg.PRETRAINING.LOSSES = node = CfgNode()
    node.IMAGE = 1.0  # weight of the image loss [DINO]; 0: none, and no local crops
    node.PATCH = 1.0  # weight of the loss on masked patches [iBOT]; 0: none
    node.VISIBLE = 0.0  # weight of visible patches within the patch loss
    node.DENSE = 0.0  # weight of the dense contrastive loss [D]: best with few photos and iterations
    node.DENSE_POINTS = 16  # points per photo
    node.DENSE_SIGMA = 0.5  # standard deviation, in patches, of the offset between the points of a pair
    node.DENSE_TEMPERATURE = 0.1
    node.STUDENT_TEMPERATURE = 0.1  # [DINO]
    node.TEACHER_TEMPERATURE = [0.04, 0.07]  # start, end [DINO]
    node.TEMPERATURE_WARMUP = 0  # number of iterations from start to end
    node.CENTER_MOMENTUM = 0.9  # of the center subtracted from the teacher's outputs [DINO]

    cfg.PRETRAINING.MASK = node = CfgNode()  # masked patches of the student
    node.VIEWS = 0.5  # share of the global crops with masked patches [iBOT]
    node.RATIO = [0.1, 0.5]  # range of the share of masked patches [iBOT]

    cfg.PRETRAINING.TEACHER = node = CfgNode()  # of METHOD distillation: a frozen ViT
    node.NAME = "vit_base_patch8_224.dino"  # a timm ViT
    node.WEIGHTS = ""  # "": the hub's for NAME; or a hub name, URL or file
    node.OPTIONS = CfgNode(new_allowed=True)  # more arguments of timm.create_model
    node.RESOLUTION = 1.0  # rows of the teacher's grid relative to the student's

    # Segment AUC every TEST.EVAL_PERIOD iterations; the best weights are kept. Labels are used only for measuring.
    cfg.PRETRAINING.CHECK = node = CfgNode()
    node.JSON = ""  # a COCO json; "": no check, and the last weights count as the best
    node.IMAGES = ""  # the folder of its images
    node.MAX_IMAGES = 50  # spread evenly over the file; 0: all
    node.FACET = "token"  # features to check: query | key | value | token (of the last block)
    node.TOKEN_BUDGET = 1600  # largest number of patches per image
