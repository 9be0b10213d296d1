"""Every config key of SOHES-D2, with its meaning, unit and the source of its default.

Sources: [P] the SOHES paper, [H] HASSOD, [U] UnSAM, [D] our decision.
"""

from __future__ import annotations

from typing import Any


def add_sohes_config(cfg: Any) -> None:
    """Add the keys of SOHES-D2 to a Detectron2 config (``detectron2.config.get_cfg()``), in place."""
    from detectron2.config import CfgNode

    # --- Phase 1, self-exploration: raw images -> pseudo-labels -----------------------------------------------------
    cfg.EXPLORATION = CfgNode()

    cfg.EXPLORATION.FEATURES = node = CfgNode()
    # "auto": DINO ViT-B/8 [P] if its weights are given, cached or reachable, else "color_texture", which needs none.
    # Or a timm model ("vit_small_patch14_dinov2.lvd142m"), "torchvision/resnet50", or a registered extractor.
    node.NAME = "auto"
    # "": the hub's weights for NAME; or a hub name, URL, or file in timm's, DINO's or DINOv2's layout; "random" for
    # tests.
    node.WEIGHTS = ""
    node.BLOCK = -1  # ViT block whose attention is read; negative counts from the last [H][U]
    node.FACET = "key"  # key [H][U] | query | value | token
    node.STRIDE = 8  # of a CNN's feature map, in pixels of its input; ViTs ignore it [D]
    node.TOKEN_BUDGET = 0  # most grid cells per image; 0: the extractor's own, which is 3600 for networks [D]
    node.DTYPE = "float32"  # float32 | bfloat16 | float16 (GPU only), for the network's forward pass

    # Merging thresholds (theta_merge), cosine similarity, descending. Empty: the extractor's own; for ViTs
    # (0.6, 0.5, 0.4, 0.3, 0.2, 0.1) [U]. `generate_pseudo_labels.py --suggest-thetas` prints what others would give.
    cfg.EXPLORATION.THETAS = []

    cfg.EXPLORATION.ZOOM = node = CfgNode()
    node.ENABLED = True  # cluster crops of small regions again [P]
    node.LARGE = True  # and of large regions: many more crops, much higher recall [U]
    node.SMALL_AREA = 0.01  # theta_small: regions under this share of the image are small [D]
    node.MIN_SIDE = 16  # pixels; regions with a shorter box are not zoomed into [D]
    node.CONTEXT = 1.25  # the crop's sides are the region's times this [D]
    node.CROP_SIZE = 256  # pixels; every crop is resized to this square [U]
    node.INSIDE = 0.9  # a sub-mask stays if this share of it lies inside the region [U]
    node.MAX_CROPS = 32  # per image and size class [D]
    node.SAME_CROP_IOU = 0.7  # crops that overlap an earlier one by more are left out [D]

    cfg.EXPLORATION.REFINEMENT = node = CfgNode()
    # none | guided (training-free) [D] | crf [H] | cascadepsp [P]. CascadePSP's weights were trained on human masks.
    node.NAME = "guided"
    # The refiner's own settings by name, for example {"radius": 2.0}; see its class.
    node.OPTIONS = CfgNode(new_allowed=True)
    node.FILL_HOLES = True  # [H][U]

    cfg.EXPLORATION.FILTER = node = CfgNode()
    node.MIN_AREA = 100  # pixels [H][U]
    node.MAX_AREA = 0.9  # share of the image [H][U]
    node.CORNERS = 0  # a mask covering this many image corners is background and dropped; 0: never [D], 3 in [H]
    node.MIN_AGREEMENT = 0.5  # IoU of a mask before and after refinement [H][U]
    node.DUPLICATE_IOU = 0.9  # of two masks that overlap by more, the lower score is dropped [U]
    node.MAX_CANDIDATES = 4000  # refined per image, the most separated from their surroundings first [D]
    node.MAX_MASKS = 1000  # per image, best scores first [D]

    cfg.EXPLORATION.HIERARCHY = node = CfgNode()
    node.THETA_COVER = 0.9  # A is inside B if B covers this share of A, and not the reverse [H]
