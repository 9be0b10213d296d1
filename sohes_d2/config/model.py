"""Keys of phase 2, self-instruction: the model, its training and its inference."""

from __future__ import annotations

from typing import Any


def add_model_config(cfg: Any) -> None:
    """Add the keys of the model to a Detectron2 config, in place."""
    CfgNode = type(cfg)

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
    # Where there is no ancestor head: A is inside B if B covers this share of A, and not the reverse [H]
    cfg.TEST.THETA_COVER = 0.9
    cfg.TEST.MIN_SCORE = 0.0  # masks scored lower, after calibration, are left out
    # [raw, calibrated] pairs, both rising strictly, from [0, 0] to a raw score of 1; linear between them: the share of
    # masks of that raw score that come back under another look, as in phase 1 (tools/calibrate_scores.py). Empty: raw
    # scores, which training always reads [D]
    cfg.TEST.SCORE_CALIBRATION = []
    cfg.TEST.NMS_THRESHOLD = 1.0  # of two masks that overlap by more, the lower score is dropped; 1: none [D]
    cfg.TEST.REFINEMENT = CfgNode()  # of outlines, by a guided filter on the image [D]
    cfg.TEST.REFINEMENT.RADIUS = 0  # pixels of the model's input, about how far outlines are off; 0: none
    cfg.TEST.REFINEMENT.EPSILON = 0.01  # smaller follows fainter edges
    # Test-time augmentation (TTA): the transforms of an image whose masks are fused [D]: same, first, and of mirrored,
    # turned_90, turned_180, turned_270, mirrored_turned_90, mirrored_turned_180, mirrored_turned_270.
    cfg.TEST.TTA = CfgNode()
    cfg.TEST.TTA.TRANSFORMS = ["same"]
    cfg.TEST.TTA.NMS_THRESHOLD = 0.6  # of two transforms' masks that overlap by more, the better one is left
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

    # More data sets by name, without Python: "labels.json, images/" or the two as a list, or {"images": folder} for
    # photos without labels. On a command line: DATASETS.REGISTER.mine "labels.json, images/".
    cfg.DATASETS.REGISTER = CfgNode(new_allowed=True)

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # ADAMW | SGD
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # of the learning rate, for what was pretrained
    cfg.SOLVER.LAYER_DECAY = 1.0  # of the learning rate from one ViT block to the one below; 1: none [D]
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # of embeddings
    cfg.SOLVER.POLY_LR_POWER = 0.9  # of WarmupPolyLR
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16, where SOLVER.AMP.ENABLED
