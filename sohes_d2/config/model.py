"""Keys of phase 2, self-instruction: the model, its training and its inference."""

from __future__ import annotations

from typing import Any


def add_model_config(cfg: Any) -> None:
    """Add the keys of the model to a Detectron2 config, in place."""
    CfgNode = type(cfg)

    # Keys of Mask2Former have its names and meanings, and the defaults of its COCO configs [M] unless marked otherwise.

    # Maximum share of tensors that MODEL.WEIGHTS may lack or have in another shape when training starts, not counting
    # parts (backbone, head) that it lacks entirely. Evaluation and inference need all tensors [D].
    cfg.MODEL.MAX_UNMATCHED = 0.05
    cfg.MODEL.VIT = node = CfgNode()
    node.NAME = "vit_base_patch8_224.dino"  # a timm VisionTransformer, any patch size [P]
    # Loaded when training starts without MODEL.WEIGHTS. "": the hub's weights for NAME; or a hub name, URL or file;
    # "shipped:NAME" for those shipped with the package; "random" for training from scratch.
    node.WEIGHTS = ""
    node.OPTIONS = CfgNode(new_allowed=True)  # more arguments of timm.create_model, for example {"depth": 4}
    # Pixels of the model's input per token, 8, 16 or 32: the image is resized by patch size / TOKEN_STRIDE for the ViT.
    # With 16, a ViT of patch size 8 runs at half the input size. 0: the patch size, or 16 if that is none of these.
    node.TOKEN_STRIDE = 0
    # Resampling of position embeddings to an image's grid: official (bicubic, as in DINO and DINOv2 without registers),
    # timm (antialiased), or auto: official if NAME is one of these models, else timm.
    node.POSITIONS = "auto"
    node.DROP_PATH = 0.2  # rate of the last block, increasing linearly from 0 [D]
    node.GRADIENT_CHECKPOINTING = False  # recompute blocks in the backward pass: less memory, about a third slower
    node.FREEZE = False  # train the adapter and the head only [D; the paper trains all]

    cfg.MODEL.VIT_ADAPTER = node = CfgNode()  # defaults for ViT-B in detection [A]
    node.NUM_INTERACTIONS = 4  # number of stages into which the ViT's blocks are divided
    node.CONV_INPLANE = 64  # channels of the spatial prior's stem
    node.NUM_HEADS = 12  # of deformable attention
    node.NUM_POINTS = 4  # per head and level
    node.DEFORM_RATIO = 0.5  # value channels relative to the ViT's
    node.CFFN_RATIO = 0.25  # hidden channels of the convolutional FFN relative to the ViT's
    node.NORM = "SyncBN"  # of the spatial prior and outputs: SyncBN | BN | GN | LN; SyncBN is BN on one device

    cfg.MODEL.VIT_PYRAMID = node = CfgNode()  # MODEL.BACKBONE.NAME build_vit_pyramid_backbone
    node.NORM = "LN"  # SyncBN | BN | GN | LN [V]

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
    node.DEC_LAYERS = 10  # number of predictions: one from the learned queries, one from each of 9 layers
    node.PRE_NORM = False
    node.ENFORCE_INPUT_PROJ = False
    node.DEEP_SUPERVISION = True
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.NO_OBJECT_WEIGHT = 0.1
    node.TRAIN_NUM_POINTS = 12544  # points per mask at which losses are computed
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    # MODEL.META_ARCHITECTURE BorderStudent, which learns entity borders from labels [D]
    cfg.MODEL.BORDER_NETWORK = node = CfgNode()
    node.CHANNELS = [32, 64, 96, 128]  # of its stages, the first at half the photo's resolution
    node.COUNT = 64  # number of label borders at a pixel that gives border strength 1
    node.BORDER_WEIGHT = 4.0  # loss weight of a pixel of border strength t: 1 + this * t
    node.JITTER = 0.2  # maximum relative change of brightness; each channel is shifted by up to a third of it
    node.MAX_PIXELS = 750_000  # larger photos are downsized to this, as in phase 1; 0: never
    node.CACHE_MEGABYTES = 2048  # cache of photos and targets, per process
    node.EMA_MOMENTUM = 0.999  # EMA of the weights that are used for inference

    cfg.MODEL.ANCESTOR_HEAD = node = CfgNode()
    node.ENABLED = True  # [P]
    node.DIM = 256  # output channels of the two projections W_a, W_d [D]
    node.WEIGHT = 2.0  # loss weight [D]
    node.THRESHOLD = 0.5  # minimum probability of a predicted pair [D]
    # minimum coverage of the descendant by the ancestor's mask [D]; 0: the probability alone
    node.THETA_COVER = 0.5
    # maximum area of the descendant as a share of the ancestor's: larger masks count as the same entity and become
    # siblings, which avoids long chains in forests [D]; 1: any smaller mask
    node.MAX_CHILD_AREA = 0.8

    # Inference. The number of masks per image is TEST.DETECTIONS_PER_IMAGE.
    # Without ancestor head: A is inside B if B covers at least this share of A, and not vice versa [H]
    cfg.TEST.THETA_COVER = 0.9
    cfg.TEST.MIN_SCORE = 0.0  # masks with a lower calibrated score are dropped
    # [raw, calibrated] pairs, strictly increasing, from [0, 0] to a raw score of 1, interpolated linearly: the share of
    # masks of that raw score that are found again in a transformed photo, as in phase 1 (tools/calibrate_scores.py).
    # Empty: raw scores, which training always uses [D]
    cfg.TEST.SCORE_CALIBRATION = []
    cfg.TEST.NMS_THRESHOLD = 1.0  # NMS threshold (IoU); 1: no NMS [D]
    cfg.TEST.REFINEMENT = CfgNode()  # refinement of outlines by a guided filter on the image [D]
    cfg.TEST.REFINEMENT.RADIUS = 0  # pixels of the model's input, about the error of outlines; 0: no refinement
    cfg.TEST.REFINEMENT.EPSILON = 0.01  # smaller values follow weaker edges
    # Test-time augmentation (TTA): the masks of several transforms are fused [D]: first identity, then any of hflip,
    # rot90, rot180, rot270, hflip_rot90, hflip_rot180, hflip_rot270.
    cfg.TEST.TTA = CfgNode()
    cfg.TEST.TTA.TRANSFORMS = ["identity"]
    cfg.TEST.TTA.NMS_THRESHOLD = 0.6  # NMS threshold (IoU) over the masks of all transforms
    # Overlapping crops of a photo in addition to the whole, each at the size of INPUT.MIN_SIZE_TEST, as in Segment
    # Anything's automatic mask generator: finds small entities.
    cfg.TEST.CROPS = node = CfgNode()
    node.LAYERS = 0  # number of layers, 0 to 4: 1 adds 2 x 2 crops, 2 also 4 x 4, and so on
    node.OVERLAP = 0.25  # share of a crop's side that overlaps with the next one [D]
    node.MARGIN = 4  # pixels of the model's input: masks this close to a side of their crop are dropped as cut off [D]
    node.NMS_THRESHOLD = 0.9  # NMS threshold (IoU) [D; 0.7 in S]
    node.BATCH_SIZE = 4  # crops per batch
    # queries: masks of the model's queries; trees: of the merge trees of phase 1 (EXPLORATION); both [D]. Used by
    # sohes demo and sohes_d2.load; evaluation during training uses the queries.
    cfg.TEST.MASKS_FROM = "queries"
    cfg.TEST.FUSION = node = CfgNode()  # of queries and trees, for MASKS_FROM both
    node.FACTOR = 0.5  # multiplies the scores of query masks [D]
    node.NMS_THRESHOLD = 0.95  # NMS threshold (IoU), as in EXPLORATION.FILTER [D]
    cfg.TEST.MASK_CHUNK_BYTES = 256 * 1024 * 1024  # memory of masks that are upsampled and encoded at once
    # Maximum share of missing or damaged images in a test set, which are scored as blank; above it, evaluation fails
    # [D].
    cfg.TEST.MAX_UNREADABLE = 0.1
    cfg.TEST.VISUALIZE = 4  # test images drawn for TensorBoard at every evaluation

    cfg.INPUT.IMAGE_SIZE = 1024  # pixels: side of the square training crops [U]
    cfg.INPUT.MIN_SCALE = 0.1  # large-scale jitter: images are resized to IMAGE_SIZE times a factor between these
    cfg.INPUT.MAX_SCALE = 2.0
    cfg.INPUT.MAX_LABELS = 200  # maximum number per training image, sampled evenly over sizes [U]
    cfg.INPUT.MIN_LABEL_AREA = 16  # pixels after cropping; smaller labels are dropped [D]
    cfg.INPUT.MIN_LABEL_SCORE = 0.0  # labels with a lower score are dropped [D]
    cfg.INPUT.COPY_PASTE = node = CfgNode()
    node.PROBABILITY = 0.0  # probability of pasting entities of another image into a training image [D]
    node.MAX_ENTITIES = 5  # maximum number of pasted wholes, each with its parts [D]

    # Additional data sets by name: "labels.json, images/" or the two as a list, or {"images": folder} for photos
    # without labels. On a command line: DATASETS.REGISTER.mine "labels.json, images/".
    cfg.DATASETS.REGISTER = CfgNode(new_allowed=True)

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW | SGD
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate factor of pretrained parameters
    cfg.SOLVER.LAYER_DECAY = 1.0  # learning rate factor from one ViT block to the one below; 1: none [D]
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of embeddings
    cfg.SOLVER.POLY_LR_POWER = 0.9  # of WarmupPolyLR
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16, if SOLVER.AMP.ENABLED
