"""Keys of phase 1, self-exploration: raw images -> pseudo-labels."""

from __future__ import annotations

from typing import Any


def exploration_cfg() -> Any:
    """A config with the keys that phase 1 reads, and no others: what there is without Detectron2."""
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
    # needs no weights; "vit_file", a ViT of sohes pretrain; "joint", both side by side [D].
    node.NAME = "auto"
    # "": the hub's weights for NAME, or for "vit_file" and "joint" those that come with the package; or a hub name,
    # URL, or file in timm's, DINO's or DINOv2's layout; "shipped:NAME"; "random" for tests.
    node.WEIGHTS = ""
    node.BLOCK = -1  # ViT block whose attention is read; negative counts from the last [H][U]
    node.FACET = "key"  # key [H][U] | query | value | token
    node.POSITIONS = "auto"  # how a ViT's positions are resampled, see MODEL.VIT.POSITIONS: auto | official | timm
    node.STRIDE = 8  # of a CNN's feature map, in pixels of its input; ViTs ignore it [D]
    node.TOKEN_BUDGET = 0  # most grid cells per image; 0: the extractor's own, which is 3600 for networks [D]
    node.DTYPE = "float32"  # float32 | bfloat16 | float16 (GPU only), for the network's forward pass

    # Larger photos are clustered at this many pixels; masks are written at the photo's own size. 0: no limit [D]
    cfg.EXPLORATION.MAX_PIXELS = 750_000

    cfg.EXPLORATION.LEAVES = node = CfgNode()  # of the merge trees
    node.NAME = "superpixels"  # superpixels [D] | grid: the cells of the features [P]
    node.SMOOTHING = 1.0  # of superpixels: pixels, standard deviation around the gradient [D]
    node.WINDOW = 3  # of superpixels: pixels, side of the window in which a marker is the minimum [D]

    cfg.EXPLORATION.BORDER = node = CfgNode()  # strength of borders: the photo's Lab gradient g as g / (g + HALF) [D]
    node.SCALES = [1.0, 2.0]  # pixels, standard deviations
    node.HALF = 20.0  # Lab units per 8 pixels
    # And the border strength that a network learned from labels: a file of sohes train-borders, or a checkpoint of a
    # training with MODEL.META_ARCHITECTURE BorderStudent; "": the gradient alone
    node.WEIGHTS = ""
    node.LEARNED_SHARE = 0.5  # of the network's in the sum of both

    # Several looks at one photo, each a merge tree; one value per look in each list. The paper has one look of weight 0
    # and power 0.
    cfg.EXPLORATION.LOOKS = node = CfgNode()
    node.SCALES = [1.0, 0.7, 0.5]  # sides of the photo in which superpixels are found, as shares of its own [D]
    node.BORDER_WEIGHTS = [2.0, 2.0, 2.0]  # lambda: similarity = cosine - lambda * mean border strength [D]
    node.SIZE_POWERS = [0.0, 0.3, 0.1]  # of the pair's harmonic size: how strongly small regions merge first [D]

    # Merging thresholds (theta_merge), cosine similarity, descending: only regions of one of these snapshots
    # are candidates [P]; for DINO (0.6, 0.5, 0.4, 0.3, 0.2, 0.1) [U]. Empty: every node of the trees [D].
    cfg.EXPLORATION.THETA_MERGE = []

    cfg.EXPLORATION.SCORE = node = CfgNode()  # see exploration/scoring.py [D]
    node.NOISE = 0.1  # border strength below which a contrast means nothing
    node.SURROUND_POWER = 0.5  # of the unlikeness to all neighbours, beside that to the nearest
    node.AGREEMENT_POWER = 0.5  # of the agreement between looks
    node.REDUNDANCY = 0.3  # most of a score that a mask loses to a better one that it overlaps
    node.REDUNDANCY_POWER = 6.0  # of that IoU: higher spares all but near-duplicates
    # The share of regions that come back under a changed photo, by their raw score (tools/calibrate_scores.py)
    node.FLOOR = 0.37  # of weak regions
    node.TAIL = 0.01  # raw score at which half of that is reached: keeps the scores of weak regions in order
    node.MIDPOINT = 0.14  # raw score whose share is halfway between the floor and 1
    node.SLOPE = 11.2  # how fast the share rises there with the logarithm of the raw score

    cfg.EXPLORATION.LOCAL_RECLUSTERING = node = CfgNode()  # local re-clustering, for LEAVES.NAME grid with THETA_MERGE
    node.ENABLED = False  # cluster crops of small regions again [P]
    node.LARGE = False  # and of large regions: many more crops, much higher recall [U]
    node.SMALL_AREA_RATIO = 0.01  # theta_small: regions under this share of the image are small [D]
    node.MIN_SIDE = 16  # pixels; regions with a shorter box are not zoomed into [D]
    node.CONTEXT = 1.25  # the crop's sides are the region's times this [D]
    node.CROP_SIZE = 256  # pixels; every crop is resized to this square [U]
    node.INSIDE = 0.9  # a sub-mask stays if this share of it lies inside the region [U]
    node.MAX_CROPS = 32  # per image and size class [D]
    node.NMS_THRESHOLD = 0.7  # crops that overlap an earlier one by more are left out [D]

    cfg.EXPLORATION.REFINEMENT = node = CfgNode()
    # none [D] | guided (training-free) [D] | crf [H] | cascadepsp [P]. For the outlines of grid leaves; superpixels
    # follow the photo already. CascadePSP's weights were trained on human masks.
    node.NAME = "none"
    # The refiner's own settings by name, for example {"radius": 2.0}; see its class.
    node.OPTIONS = CfgNode(new_allowed=True)
    node.FILL_HOLES = True  # after a refiner [H][U]

    cfg.EXPLORATION.FILTER = node = CfgNode()
    node.MIN_AREA = 100  # pixels [H][U]
    node.MAX_AREA_RATIO = 0.9  # share of the image [H][U]
    node.CORNERS = 0  # a mask covering this many image corners is background and dropped; 0: never [D], 3 in [H]
    node.MIN_AGREEMENT = 0.5  # IoU of a mask before and after refinement [H][U]
    node.NMS_THRESHOLD = 0.95  # of two masks that overlap by more, the lower score is dropped [D; 0.9 in U]
    node.MAX_CANDIDATES = 1500  # compared per look; with a refiner, refined per image [D]
    node.MAX_MASKS = 1000  # per image, best scores first [D]

    cfg.EXPLORATION.HIERARCHY = node = CfgNode()
    node.THETA_COVER = 0.9  # A is inside B if B covers this share of A, and not the reverse [H]; 1 within a merge tree
    # Label files hold every mask, for training. People see the collapsed forest (`Forest.collapse`, `Forest.select`):
    # a mask over this share of its parent's area and the parent are one entity, and the better one is shown [D]
    node.MAX_CHILD_AREA = 0.7
    node.MAX_ONLY_CHILD_AREA = 0.5  # the same for a mask without siblings [D]
    node.MAX_OVERLAP = 0.1  # share of the smaller of two wholes, or selected entities, that both may cover [D]
    node.MAX_DEPTH = 4  # of what is shown; wholes have depth 0 [D]
    # Of N selected entities: over RANK_SCALE * N ranks by score, a mask's value to the selection falls to 1/e [D]
    node.RANK_SCALE = 0.5
