"""Photos of a few coloured rectangles, their segments, and settings for trainings that take about a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sohes_d2.config.load import load_config
from sohes_d2.structures.masks import encode_masks, rle_to_json

SIZE = (48, 64)
OPTIONS = {"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}


def photo(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """((H, W, 3) uint8, (3, H, W) bool segments): two uniform rectangles on a uniform background, with some noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SIZE, int)
    label[8:40, 4:28], label[8:40, 36:60] = 1, 2
    colors = rng.choice(np.arange(20, 236, 24), (3, 3))
    image = colors[label] + rng.integers(-6, 7, (*SIZE, 1))
    return image.clip(0, 255).astype(np.uint8), label == np.arange(3)[:, None, None]


def write_photos(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """Write photos and their COCO json; returns (folder of photos, json file)."""
    images = folder / "photos"
    images.mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    for index in range(count):
        image, segments = photo(index)
        name = f"{index:02d}.png"
        Image.fromarray(image).save(images / name)
        content["images"].append({"id": index + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for rle in encode_masks(segments):
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number, "image_id": index + 1, "category_id": 1, "segmentation": rle_to_json(rle)}
            )
    (folder / "segments.json").write_text(json.dumps(content))
    return images, folder / "segments.json"


def tiny_options(folder: Path, output: Path, iterations: int = 6) -> list[str]:
    """KEY VALUE pairs of a training with all three terms on the photos of ``folder``."""
    pairs = {
        "MODEL.DEVICE": "cpu",
        "MODEL.VIT.NAME": "vit_tiny_patch16_224",
        **{f"MODEL.VIT.OPTIONS.{key}": value for key, value in OPTIONS.items()},
        "MODEL.VIT.DROP_PATH": 0.0,
        "MODEL.VIT.WEIGHTS": "random",
        "PRETRAINING.IMAGES": [str(folder / "photos")],
        "PRETRAINING.EMA_MOMENTUM": [0.9, 1.0],
        "PRETRAINING.VIEWS.GLOBAL_SIZE": 32,
        "PRETRAINING.VIEWS.LOCAL_SIZE": 16,
        "PRETRAINING.VIEWS.LOCAL_COUNT": 2,
        "PRETRAINING.HEAD.PROTOTYPES": 16,
        "PRETRAINING.HEAD.HIDDEN_DIM": 16,
        "PRETRAINING.HEAD.BOTTLENECK_DIM": 8,
        "PRETRAINING.LOSSES.DENSE": 1.0,
        "PRETRAINING.CHECK.JSON": str(folder / "segments.json"),
        "PRETRAINING.CHECK.IMAGES": str(folder / "photos"),
        "PRETRAINING.CHECK.TOKEN_BUDGET": 48,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.BASE_LR": 0.002,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "TEST.EVAL_PERIOD": 3,
        "DATALOADER.NUM_WORKERS": 0,
        "SEED": 3,
        "OUTPUT_DIR": str(output),
    }
    return [text for key, value in pairs.items() for text in (key, str(value))]


def tiny_cfg(folder: Path, output: Path, iterations: int = 6, **changes: object):
    """A frozen config; ``changes`` are KEY VALUE pairs with "__" for the dots."""
    extra = [text for key, value in changes.items() for text in (key.replace("__", "."), str(value))]
    cfg = load_config("", tiny_options(folder, output, iterations) + extra)
    cfg.freeze()
    return cfg
