"""Keys of phase 1, self-exploration: raw images -> pseudo-labels."""

from __future__ import annotations

from typing import Any


def exploration_cfg() -> Any:
    """A config with only the keys of phase 1, which does not need Detectron2."""
    from fvcore.common.config import CfgNode

    cfg = CfgNode()
    cfg.VERSION = 2
    cfg.MODEL = CfgNode()
    cfg.MODEL.DEVICE = "cuda"
    cfg.INPUT = CfgNode()
    add_exploration_config(cfg)
    return cfg


def add_exploration_config(cfg: Any) -> None:
    """Add the keys of phase 1, in place, to a config that has the sections MODEL and INPUT."""
    CfgNode = type(cfg)

    cfg.INPUT.MAX_IMAGE_PIXELS = 128_000_000  # height times width; larger files are skipped, not decoded [D]
    cfg.EXPLORATION = CfgNode()

    cfg.EXPLORATION.FEATURES = node = CfgNode()
    # "auto": DINO ViT-B/8 [P] if its weights are given, cached or reachable, else "joint". Or a timm model
    # ("vit_small_patch14_dinov2.lvd142m"), "torchvision/resnet50", or a registered extractor: "color_texture", which
    # needs no weights; "vit_file", a ViT of sohes pretrain; "joint", both concatenated [D].
    node.NAME = "auto"
    # "": the hub's weights for NAME, or for "vit_file" and "joint" those shipped with the package; or a hub name,
    # URL, or file in timm's, DINO's or DINOv2's layout; "shipped:NAME"; "random" for tests.
    node.WEIGHTS = ""
    node.BLOCK = -1  # ViT block to take features from; negative counts from the last [H][U]
    node.FACET = "key"  # key [H][U] | query | value | token
    node.POSITIONS = "auto"  # resampling of a ViT's positions, see MODEL.VIT.POSITIONS: auto | official | timm
    node.STRIDE = 8  # of a CNN's feature map, in pixels of its input; ignored by ViTs [D]
    node.TOKEN_BUDGET = 0  # maximum tokens per image; 0: the extractor's default, 3600 for networks [D]
    node.DTYPE = "float32"  # float32 | bfloat16 | float16 (GPU only), for the network's forward pass

    # Larger photos are clustered at this number of pixels; masks are written at the photo's size. 0: no limit [D]
    cfg.EXPLORATION.MAX_PIXELS = 750_000

    cfg.EXPLORATION.LEAVES = node = CfgNode()  # of the merge trees
    node.NAME = "superpixels"  # superpixels [D] | grid: the cells of the features [P]
    node.SMOOTHING = 1.0  # superpixels: standard deviation in pixels, before and after the gradient [D]
    node.WINDOW = 3  # superpixels: side in pixels of the window whose minimum is a marker [D]

    cfg.EXPLORATION.BORDER = node = CfgNode()  # border strength g / (g + HALF), g: the photo's Lab gradient [D]
    node.SCALES = [1.0, 2.0]  # pixels, standard deviations of the gradient's Gaussians
    node.HALF = 20.0  # Lab units per 8 pixels
    # Network that predicts border strength, averaged with that of the gradient: a file of sohes train-borders, or a
    # checkpoint of a training with MODEL.META_ARCHITECTURE BorderStudent; "": the gradient alone
    node.WEIGHTS = ""
    node.LEARNED_SHARE = 0.5  # weight of the network in the average

    # Looks: several merge trees of one photo; each list has one value per look. The paper uses one look with weight 0
    # and power 0.
    cfg.EXPLORATION.LOOKS = node = CfgNode()
    node.SCALES = [1.0, 0.7, 0.5]  # scale of the photo for superpixels, relative to its size [D]
    node.BORDER_WEIGHTS = [2.0, 2.0, 2.0]  # lambda: similarity = cosine - lambda * mean border strength [D]
    node.SIZE_POWERS = [0.0, 0.3, 0.1]  # exponent of a pair's harmonic mean area; higher merges small regions first [D]

    # Merging thresholds (theta_merge), cosine similarity, descending: only regions present at one are candidates [P];
    # for DINO (0.6, 0.5, 0.4, 0.3, 0.2, 0.1) [U]. Empty: all nodes of the trees [D].
    cfg.EXPLORATION.THETA_MERGE = []

    cfg.EXPLORATION.SCORE = node = CfgNode()  # see exploration/scoring.py [D]
    node.NOISE = 0.1  # border strength below which contrast is damped
    node.SURROUND_POWER = 0.5  # exponent of the mean dissimilarity to all neighbours
    node.AGREEMENT_POWER = 0.5  # exponent of the agreement between looks
    node.REDUNDANCY = 0.3  # maximum share of its score that a mask loses by overlapping a better one
    node.REDUNDANCY_POWER = 6.0  # exponent of their IoU; if high, only near-duplicates lose score
    # Calibration: share of regions found again in a transformed photo, by raw score (tools/calibrate_scores.py)
    node.FLOOR = 0.37  # share for weak regions
    node.TAIL = 0.01  # raw score at which half of FLOOR is reached; keeps the order of weak regions
    node.MIDPOINT = 0.14  # raw score at which the share is halfway between FLOOR and 1
    node.SLOPE = 11.2  # steepness of the share there, in the logarithm of the raw score

    cfg.EXPLORATION.LOCAL_RECLUSTERING = node = CfgNode()  # local re-clustering, for LEAVES.NAME grid with THETA_MERGE
    node.ENABLED = False  # cluster crops of small regions again [P]
    node.LARGE = False  # also of large regions: many more crops, much higher recall [U]
    node.SMALL_AREA_RATIO = 0.01  # theta_small: regions below this share of the image are small [D]
    node.MIN_SIDE = 16  # pixels; regions with a shorter box side are not clustered again [D]
    node.CONTEXT = 1.25  # sides of the crop relative to those of the region's box [D]
    node.CROP_SIZE = 256  # pixels; every crop is resized to this square [U]
    node.INSIDE = 0.9  # a sub-mask is kept if this share of it is inside the region [U]
    node.MAX_CROPS = 32  # maximum per image and size class [D]
    node.NMS_THRESHOLD = 0.7  # crops that overlap an earlier one by more (IoU) are skipped [D]

    cfg.EXPLORATION.REFINEMENT = node = CfgNode()
    # none [D] | guided (training-free) [D] | crf [H] | cascadepsp [P]. Useful for leaves on a grid; superpixels
    # already follow edges. CascadePSP's weights were trained on human masks.
    node.NAME = "none"
    # Options of the refiner by name, for example {"radius": 2.0}; see its class.
    node.OPTIONS = CfgNode(new_allowed=True)
    node.FILL_HOLES = True  # after a refiner [H][U]

    cfg.EXPLORATION.FILTER = node = CfgNode()
    node.MIN_AREA = 100  # pixels [H][U]
    node.MAX_AREA_RATIO = 0.9  # share of the image [H][U]
    node.CORNERS = 0  # masks covering this many image corners are dropped as background; 0: none [D], 3 in [H]
    node.MIN_AGREEMENT = 0.5  # IoU of a mask before and after refinement [H][U]
    node.NMS_THRESHOLD = 0.95  # NMS threshold (IoU) [D; 0.9 in U]
    node.MAX_CANDIDATES = 1500  # maximum candidates per look; with a refiner, per image [D]
    node.MAX_MASKS = 1000  # maximum per image, best scores first [D]

    cfg.EXPLORATION.HIERARCHY = node = CfgNode()
    node.THETA_COVER = 0.9  # A is inside B if B covers this share of A, and not vice versa [H]; within a merge tree 1
    # Label files contain all masks, for training. Displays show the collapsed forest (`Forest.collapse`,
    # `Forest.select`): if a mask has more than this share of its parent's area, only the better of them is shown [D]
    node.MAX_CHILD_AREA = 0.7
    node.MAX_ONLY_CHILD_AREA = 0.5  # the same for a mask without siblings [D]
    node.MAX_OVERLAP = 0.1  # maximum overlap of two wholes or selected entities, as a share of the smaller [D]
    node.MAX_DEPTH = 4  # maximum displayed depth; wholes have depth 0 [D]
    # For N selected entities, the value of a mask falls to 1/e over RANK_SCALE * N ranks by score [D]
    node.RANK_SCALE = 0.5
