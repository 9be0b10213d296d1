"""Every config key of SOHES-D2, with its meaning, unit and the source of its default.

Sources: [P] the SOHES paper, [H] HASSOD, [U] UnSAM, [M] Mask2Former, [A] ViT-Adapter, [S] Segment Anything, [D] our
decision.
"""

from __future__ import annotations

from typing import Any


def add_sohes_config(cfg: Any) -> None:
    """Add the keys of SOHES-D2 to a Detectron2 config (``detectron2.config.get_cfg()``), in place.

    Whoever builds a model needs these keys first, so this also enters SOHES-D2's models in Detectron2's registries.

    Raises:
        Detectron2Error: Detectron2 is not installed.
    """
    from . import compat

    compat.require()
    from detectron2.config import CfgNode

    from . import correction, modeling  # noqa: F401  (register)

    add_exploration_config(cfg)

    # --- Phase 2, self-instruction: the model and its training ------------------------------------------------------
    # Names of keys that Mask2Former has, too, are its names, with the same meaning; so are the defaults of its COCO
    # configs [M], where no other source is named.
    # Share of the tensors of a part (backbone, head) that MODEL.WEIGHTS may lack or have in another shape when training
    # begins; of a part it may lack all. Evaluation and inference want every tensor [D].
    cfg.MODEL.MAX_UNMATCHED = 0.05
    cfg.MODEL.VIT = node = CfgNode()
    node.NAME = "vit_base_patch8_224.dino"  # a timm VisionTransformer, any patch size [P]
    # Loaded when training starts without MODEL.WEIGHTS. "": the hub's weights for NAME; or a hub name, URL or file;
    # "shipped:NAME" for those that come with the package; "random" for training from scratch.
    node.WEIGHTS = ""
    node.OPTIONS = CfgNode(new_allowed=True)  # more arguments of timm.create_model, for example {"depth": 4}
    # Pixels of the model's input per token, 8, 16 or 32: the ViT sees the image resized by patch size / TOKEN_STRIDE.
    # With 16 an 8-px ViT runs at half input size. 0: the patch size, or 16 where that does not divide 32.
    node.TOKEN_STRIDE = 0
    # How positions are resampled to an image's grid: official (bicubic, as DINO and DINOv2 without registers), timm
    # (antialiased), or auto, by NAME: official for those two.
    node.POSITIONS = "auto"
    node.DROP_PATH = 0.2  # of the last block, rising linearly from 0 [D]
    node.GRADIENT_CHECKPOINTING = False  # recompute blocks in the backward pass: less memory, about a third slower
    node.FREEZE = False  # train the adapter and the head only [D; the paper trains all]

    cfg.MODEL.VIT_ADAPTER = node = CfgNode()  # with the defaults for ViT-B in detection [A]
    node.NUM_INTERACTIONS = 4  # the ViT's blocks are split into so many stages
    node.CONV_INPLANE = 64  # channels of the spatial prior's stem
    node.NUM_HEADS = 12  # of deformable attention
    node.NUM_POINTS = 4  # per head and level
    node.DEFORM_RATIO = 0.5  # value channels over the ViT's
    node.CFFN_RATIO = 0.25  # hidden channels of the convolutional FFN over the ViT's
    node.NORM = "SyncBN"  # of the spatial prior and outputs: SyncBN | BN | GN | LN; SyncBN is BN on one device

    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 256
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 6
    cfg.MODEL.SEM_SEG_HEAD.ENC_DIM_FEEDFORWARD = 1024
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    cfg.MODEL.MASK_FORMER = node = CfgNode()
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    node.NUM_OBJECT_QUERIES = 1000  # recall is measured at 1000 [D; 2000 in U]
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.DEC_LAYERS = 10  # outputs: the learned queries' and one per layer, so 9 layers
    node.PRE_NORM = False
    node.ENFORCE_INPUT_PROJ = False
    node.DEEP_SUPERVISION = True
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.NO_OBJECT_WEIGHT = 0.1
    node.TRAIN_NUM_POINTS = 12544  # points per mask at which losses are taken
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    # Of MODEL.META_ARCHITECTURE BorderStudent, which learns from labels where entities end [D]
    cfg.MODEL.BORDER_NETWORK = node = CfgNode()
    node.CHANNELS = [32, 64, 96, 128]  # of its stages, the first at half of the photo's resolution
    node.COUNT = 64  # labels that end at a pixel of the strongest border
    node.BORDER_WEIGHT = 4.0  # the loss of a pixel of border strength t counts 1 + this * t
    node.JITTER = 0.2  # brightness changes by up to this share, each channel by a third of it
    node.MAX_PIXELS = 750_000  # larger photos are reduced to so many, as phase 1 shows them; 0: never
    node.CACHE_MEGABYTES = 2048  # of photos and targets that each process keeps
    node.EMA_MOMENTUM = 0.999  # of the average of its weights, which is what is used

    cfg.MODEL.ANCESTOR_HEAD = node = CfgNode()
    node.ENABLED = True  # [P]
    node.DIM = 256  # of the two projections W_a, W_d [D]
    node.WEIGHT = 2.0  # of its loss [D]
    node.THRESHOLD = 0.5  # a predicted pair counts from this probability on [D]
    # and if the ancestor's mask covers this share of the descendant's [D]; 0: the probability alone
    node.THETA_COVER = 0.5
    # and if the descendant's area is at most this share of the ancestor's: of larger ones, which outline the same
    # entity, none is above the other, so that forests do not become chains [D]; 1: any smaller mask
    node.MAX_CHILD_AREA = 0.8

    # Inference. The number of masks per image is TEST.DETECTIONS_PER_IMAGE.
    cfg.TEST.MIN_SCORE = 0.0  # masks scored lower, after calibration, are left out
    # [raw, calibrated] pairs, both rising strictly, from [0, 0] to a raw score of 1; linear between them: the share of
    # masks of that raw score that come back under another look, as in phase 1 (tools/calibrate_scores.py). Empty: raw
    # scores, which training always reads [D]
    cfg.TEST.SCORE_CALIBRATION = []
    cfg.TEST.DUPLICATE_IOU = 1.0  # of two masks that overlap by more, the lower score is dropped; 1: none [D]
    cfg.TEST.REFINEMENT = CfgNode()  # of outlines, by a guided filter on the image [D]
    cfg.TEST.REFINEMENT.RADIUS = 0  # pixels of the model's input, about how far outlines are off; 0: none
    cfg.TEST.REFINEMENT.EPSILON = 0.01  # smaller follows fainter edges
    # In which ways the model looks at an image, to say what all of them agree on [D]: same, first, and of mirrored,
    # turned_90, turned_180, turned_270, mirrored_turned_90, mirrored_turned_180, mirrored_turned_270.
    cfg.TEST.VIEWS = CfgNode()
    cfg.TEST.VIEWS.NAMES = ["same"]
    cfg.TEST.VIEWS.DUPLICATE_IOU = 0.6  # of two views' masks that overlap by more, the better one is left
    # Overlapping crops of a photo that the model sees beside the whole, each at the size of INPUT.MIN_SIZE_TEST, as in
    # Segment Anything's automatic mask generator: finds small entities.
    cfg.TEST.CROPS = node = CfgNode()
    node.LAYERS = 0  # of crops: 0 none, 1 has 2 x 2, 2 has 4 x 4 beside them, up to 4
    node.OVERLAP = 0.25  # share of a crop's side that the next one shows, too [D]
    node.MARGIN = 4  # pixels of the model's input: masks so close to a side of their crop are cut, and left out [D]
    node.NMS_THRESHOLD = 0.7  # IoU from which the lower score of two masks is left out [S]
    node.BATCH_SIZE = 4  # crops at once
    cfg.TEST.MASK_CHUNK_BYTES = 256 * 1024 * 1024  # memory of the masks that are upsampled and encoded at once
    # Share of a test set's images that may be missing or damaged, and are scored as blank; evaluation with more is
    # refused [D].
    cfg.TEST.MAX_UNREADABLE = 0.1
    cfg.TEST.VISUALIZE = 4  # images of the test set that training draws at every evaluation, for TensorBoard

    cfg.INPUT.IMAGE_SIZE = 1024  # pixels: training crops are squares of this side [U]
    cfg.INPUT.MIN_SCALE = 0.1  # large-scale jitter: the image is resized to IMAGE_SIZE times a factor between these
    cfg.INPUT.MAX_SCALE = 2.0
    cfg.INPUT.MAX_LABELS = 200  # per training image, sampled evenly over sizes [U]
    cfg.INPUT.MIN_LABEL_AREA = 16  # pixels after cropping; smaller labels are dropped [D]
    cfg.INPUT.MIN_LABEL_SCORE = 0.0  # labels scored lower are left out [D]
    cfg.INPUT.COPY_PASTE = node = CfgNode()
    node.PROBABILITY = 0.0  # that a training image gets entities of another one pasted on [D]
    node.MAX_ENTITIES = 5  # wholes pasted at once, each with its parts [D]

    # More data sets, without Python: yaml such as "mine: labels.json, images/", or a file of it.
    cfg.DATASETS.REGISTER = ""

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW | SGD
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # of the learning rate, for what was pretrained
    cfg.SOLVER.LAYER_DECAY = 1.0  # of the learning rate from one ViT block to the one below; 1: none [D]
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # of embeddings
    cfg.SOLVER.POLY_LR_POWER = 0.9  # of WarmupPolyLR
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16, where SOLVER.AMP.ENABLED

    # --- Phase 3, self-correction: teacher and student ---------------------------------------------------------------
    cfg.CORRECTION = node = CfgNode()
    node.EMA_MOMENTUM = 0.9996  # of the teacher's weights in each iteration [H]
    node.EMA_WARMUP = 0  # iterations over which the momentum rises to its value [D]
    node.EVALUATE = "teacher"  # who answers at inference: teacher | student
    node.INITIAL_WEIGHT = [1.0, 0.0]  # of the losses on the initial labels, at the start and the end [H]
    node.TEACHER_WEIGHT = [2.0, 3.0]  # of the losses on the teacher's labels [H]
    node.WEIGHT_SCHEDULE = "cosine"  # from start to end: cosine [H] | linear | constant
    node.DUPLICATE_IOU = 0.5  # a teacher's label that overlaps an initial one by more is not counted twice [D]
    node.OWN_DUPLICATE_IOU = 0.9  # of two teacher's labels that overlap by more, the lower score is dropped [D]
    node.MAX_LABELS = 200  # teacher's labels per image, the best first [D]
    node.MIN_AREA = 16  # pixels of the model's input; smaller teacher's masks are no labels [D]
    node.REFINEMENT = CfgNode()  # of the teacher's labels on its view, as TEST.REFINEMENT [D]
    node.REFINEMENT.RADIUS = 0
    node.REFINEMENT.EPSILON = 0.01
    node.TEACHER_VIEWS = CfgNode()  # of its image, as TEST.VIEWS [D]
    node.TEACHER_VIEWS.NAMES = ["same"]
    node.TEACHER_VIEWS.DUPLICATE_IOU = 0.6
    # Who is whose ancestor among the teacher's labels: teacher (its ancestor head) | coverage | none (not taught) [D]
    node.ANCESTORS = "teacher"

    # The score from which a teacher's mask is a label. dynamic [P; formula D]: TAU_SMALL up to AREA_SMALL (share of the
    # image), TAU_LARGE from AREA_LARGE, linear in the logarithm between; fixed; top_k: the best of each image.
    cfg.CORRECTION.THRESHOLD = node = CfgNode()
    node.NAME = "dynamic"
    node.TAU_SMALL = 0.3
    node.TAU_LARGE = 0.7
    node.AREA_SMALL = 0.001
    node.AREA_LARGE = 0.1
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
    node.ERASE_AREA = [0.02, 0.1]  # of each, as a share of the image

    cfg.CORRECTION.GUARD = node = CfgNode()  # against a teacher that forgets everything
    node.PERIOD = 50  # iterations over which the teacher's labels are averaged
    node.MIN_LABELS = 0.5  # mean labels per image under which a period counts as collapsed
    node.PATIENCE = 5  # collapsed periods in a row that stop the training

    # --- Before phase 1: self-supervised backbone pretraining on photos (sohes pretrain) ----
    # The ViT is that of MODEL.VIT (NAME, OPTIONS, DROP_PATH; WEIGHTS to go on from some), the optimizer that of SOLVER.
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
    node.FREEZE_LAST_LAYER = 0  # iterations in which the last layer stands still [DINO has an epoch]

    cfg.PRETRAINING.LOSSES = node = CfgNode()
    node.IMAGE = 1.0  # weight of the image term [DINO]; 0: none, and no small crops
    node.PATCH = 1.0  # weight of the term on hidden patches [iBOT]; 0: none
    node.VISIBLE = 0.0  # and, within it, on patches that were not hidden
    node.PLACE = 0.0  # weight of the term that tells places apart [D]: learns most from few photos and iterations
    node.PLACE_POINTS = 16  # places per photo
    node.PLACE_SIGMA = 0.5  # patches by which two places that belong together lie apart
    node.PLACE_TEMPERATURE = 0.1
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
    # --- Phase 1, self-exploration: raw images -> pseudo-labels -----------------------------------------------------
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
    # And the border strength that a network learned from labels: "shipped:border_unet", or a file of a training with
    # MODEL.META_ARCHITECTURE BorderStudent; "": the gradient alone
    node.WEIGHTS = ""
    node.LEARNED_SHARE = 0.5  # of the network's in the sum of both

    # Several looks at one photo, each a merge tree; one value per look in each list. The paper has one look of weight 0
    # and power 0.
    cfg.EXPLORATION.LOOKS = node = CfgNode()
    node.SCALES = [1.0, 0.7, 0.5]  # sides of the photo in which superpixels are found, as shares of its own [D]
    node.BORDER_WEIGHTS = [2.0, 2.0, 2.0]  # lambda: similarity = cosine - lambda * mean border strength [D]
    node.SIZE_POWERS = [0.0, 0.3, 0.1]  # of the pair's harmonic size: how strongly small regions merge first [D]

    # Merging thresholds (theta_merge), cosine similarity, descending: only regions that stand in one of these snapshots
    # are candidates [P]; for DINO (0.6, 0.5, 0.4, 0.3, 0.2, 0.1) [U]. Empty: every node of the trees [D].
    cfg.EXPLORATION.THETAS = []

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

    cfg.EXPLORATION.ZOOM = node = CfgNode()  # local re-clustering, for LEAVES.NAME grid with THETAS
    node.ENABLED = False  # cluster crops of small regions again [P]
    node.LARGE = False  # and of large regions: many more crops, much higher recall [U]
    node.SMALL_AREA = 0.01  # theta_small: regions under this share of the image are small [D]
    node.MIN_SIDE = 16  # pixels; regions with a shorter box are not zoomed into [D]
    node.CONTEXT = 1.25  # the crop's sides are the region's times this [D]
    node.CROP_SIZE = 256  # pixels; every crop is resized to this square [U]
    node.INSIDE = 0.9  # a sub-mask stays if this share of it lies inside the region [U]
    node.MAX_CROPS = 32  # per image and size class [D]
    node.SAME_CROP_IOU = 0.7  # crops that overlap an earlier one by more are left out [D]

    cfg.EXPLORATION.REFINEMENT = node = CfgNode()
    # none [D] | guided (training-free) [D] | crf [H] | cascadepsp [P]. For the outlines of grid leaves; superpixels
    # follow the photo already. CascadePSP's weights were trained on human masks.
    node.NAME = "none"
    # The refiner's own settings by name, for example {"radius": 2.0}; see its class.
    node.OPTIONS = CfgNode(new_allowed=True)
    node.FILL_HOLES = True  # after a refiner [H][U]

    cfg.EXPLORATION.FILTER = node = CfgNode()
    node.MIN_AREA = 100  # pixels [H][U]
    node.MAX_AREA = 0.9  # share of the image [H][U]
    node.CORNERS = 0  # a mask covering this many image corners is background and dropped; 0: never [D], 3 in [H]
    node.MIN_AGREEMENT = 0.5  # IoU of a mask before and after refinement [H][U]
    node.DUPLICATE_IOU = 0.95  # of two masks that overlap by more, the lower score is dropped [D; 0.9 in U]
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
