"""`PseudoLabelDatasetMapper`: images and labels through the augmentations, and unusable samples."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from sohes_d2 import add_sohes_config
from sohes_d2.data.training.mapper import PseudoLabelDatasetMapper
from sohes_d2.errors import InputError
from sohes_d2.structures.masks import encode_masks, rle_to_json

from detectron2.config import get_cfg
from detectron2.data import transforms as T

HEIGHT, WIDTH = 20, 30


def config(**settings):
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = 32
    cfg.INPUT.MIN_LABEL_AREA = 1
    cfg.merge_from_list([v for key, value in settings.items() for v in (f"INPUT.{key.replace('__', '.')}", value)])
    return cfg


def rectangle(y0, y1, x0, x1, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def photo(seed=0, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def record(path, pixels, masks, parents=None, **more):
    """A Detectron2 dict; ``parents`` are indices of masks, -1 for none."""
    Image.fromarray(pixels).save(path)
    parents = [-1] * len(masks) if parents is None else parents
    annotations = [
        {"id": 10 + k, "parent_id": 10 + p if p >= 0 else 0, "score": 1.0, "segmentation": rle_to_json(rle)}
        for k, (rle, p) in enumerate(zip(encode_masks(masks), parents))
    ]
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return {"file_name": str(path), "image_id": 5, **size, "annotations": annotations, **more}


def mapper(transforms, **settings):
    return PseudoLabelDatasetMapper(is_train=True, augmentations=transforms, **{"min_label_area": 1, **settings})


def seeded(call, *args, seed=0):
    np.random.seed(seed)  # noqa: NPY002
    return call(*args)


def test_flip_and_crop_pixel_by_pixel(tmp_path):
    pixels = photo()
    masks = [rectangle(0, 20, 5, 25), rectangle(3, 9, 8, 14), np.random.default_rng(1).random((20, 30)) < 0.5]
    transforms = [T.HFlipTransform(WIDTH), T.CropTransform(4, 2, 20, 15)]
    given = record(tmp_path / "a.png", pixels, masks)
    sample = mapper(transforms)(given)

    def expected(array):
        return array[:, ::-1][2:17, 4:24]

    assert sample["image"].dtype == torch.uint8 and sample["image"].is_contiguous()
    assert np.array_equal(sample["image"].permute(1, 2, 0), expected(pixels))
    instances = sample["instances"]
    assert instances.image_size == (15, 20)
    assert np.array_equal(instances.gt_masks.tensor, np.array([expected(mask) for mask in masks]))
    # columns 8..13 become 16..21 when flipped and 12..17 when cropped; rows 3..8 become 1..6
    assert instances.gt_boxes.tensor[1].tolist() == [12, 1, 18, 7]
    assert {key: sample[key] for key in ("file_name", "image_id", "height", "width")} == {
        "file_name": given["file_name"],
        "image_id": 5,
        "height": 20,
        "width": 30,
    }


def test_the_configured_augmentations(tmp_path):
    """Photos are resized to fit the square and padded with grey; masks cover the same pixels, no padding."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[5:15, 10:20] = 255
    given = record(tmp_path / "a.png", pixels, [rectangle(5, 15, 10, 20), rectangle(0, 20, 0, 30)])
    m = PseudoLabelDatasetMapper(config(IMAGE_SIZE=60, MIN_SCALE=1.0, MAX_SCALE=1.0, RANDOM_FLIP="none"), is_train=True)
    sample = m(given)
    assert sample["image"].shape == (3, 60, 60)
    assert (sample["image"][:, 40:] == 128).all()
    small, whole = sample["instances"].gt_masks.tensor
    assert torch.equal(small, torch.from_numpy(rectangle(10, 30, 20, 40, (60, 60))))
    assert torch.equal(whole, torch.from_numpy(rectangle(0, 40, 0, 60, (60, 60))))
    assert sample["image"][0][small].float().mean() > 235 and sample["image"][0][~small & whole].float().mean() < 10

    shapes = set()
    m = PseudoLabelDatasetMapper(config(MIN_SCALE=0.3, MAX_SCALE=2.0), is_train=True)
    np.random.seed(0)  # noqa: NPY002
    for _ in range(20):
        sample = m(given)
        masks = sample["instances"].gt_masks.tensor
        assert sample["image"].shape == (3, 32, 32) and masks.shape[1:] == (32, 32)
        grey = (sample["image"] == 128).all(dim=0)
        grey[: (~grey).any(dim=1).sum(), : (~grey).any(dim=0).sum()] = False  # padding, not grey pixels of the photo
        assert not (masks & grey).any()
        shapes.add(int(grey.sum()))
    assert len(shapes) > 5 and 0 in shapes


def test_channel_order(tmp_path):
    given = record(tmp_path / "a.png", photo(), [rectangle(0, 9, 0, 9)])
    rgb, bgr = (mapper([T.NoOpTransform()], image_format=order)(given)["image"] for order in ("RGB", "BGR"))
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)


def test_polygons_without_ids(tmp_path):
    """A plain Detectron2 dict, as loaded from a COCO file by Detectron2 itself."""
    given = record(tmp_path / "a.png", photo(), [])
    given["annotations"] = [{"segmentation": [[5, 4, 25, 4, 25, 11, 5, 11]], "bbox": [0] * 4, "category_id": 3}]
    instances = mapper([T.NoOpTransform()])(given)["instances"]
    assert np.array_equal(instances.gt_masks.tensor[0], rectangle(4, 11, 5, 25))
    assert instances.gt_classes.tolist() == [0]


def test_exif(tmp_path):
    """A photo stored rotated: labels refer to the photo in its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo(size=(WIDTH, HEIGHT))
    given = record(tmp_path / "a.png", np.rot90(stored, 3), [rectangle(0, 5, 0, 30)])
    Image.fromarray(stored).save(given["file_name"], exif=exif)
    sample = mapper([T.NoOpTransform()])(given)
    assert np.array_equal(sample["image"].permute(1, 2, 0), np.rot90(stored, 3))


def test_ancestors_when_the_middle_of_a_chain_vanishes(tmp_path):
    """Whole, part, subpart: the crop keeps only one pixel of the part, which is too small, and all of the others."""
    whole, subpart = rectangle(0, 20, 0, 20), rectangle(0, 5, 10, 15)
    part = rectangle(5, 20, 20, 30) | rectangle(0, 1, 10, 11)
    given = record(tmp_path / "a.png", photo(), [whole, part, subpart], [-1, 0, 1])
    instances = mapper([T.CropTransform(0, 0, 20, 20)], min_label_area=2)(given)["instances"]
    assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [400, 25]
    assert instances.gt_ancestors.tensor.tolist() == [[False, True], [False, False]]
    instances = mapper([T.CropTransform(0, 0, 20, 20)], min_label_area=1)(given)["instances"]
    assert instances.gt_ancestors.tensor.tolist() == [[False, True, True], [False, False, True], [False] * 3]


def test_scores_and_crowds(tmp_path):
    given = record(tmp_path / "a.png", photo(), [rectangle(0, k, 0, k) for k in (16, 8, 4)], [-1, 0, 1])
    given["annotations"][1]["score"] = 0.3
    instances = mapper([T.NoOpTransform()], min_label_score=0.5)(given)["instances"]
    assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [256, 16]
    assert instances.gt_ancestors.tensor.tolist() == [[False, True], [False, False]]
    given["annotations"][0]["iscrowd"] = 1
    assert len(mapper([T.NoOpTransform()], min_label_score=0.5)(given)["instances"]) == 1


def test_labels_are_sampled_over_sizes(tmp_path):
    """60 labels of 4 pixels, 6 of 36, 2 of 144; dropped labels leave room for others."""
    size = (40, 60)
    small = [rectangle(y, y + 2, x, x + 2, size) for y in range(0, 12, 2) for x in range(0, 20, 2)]
    middle = [rectangle(20, 26, x, x + 6, size) for x in range(0, 36, 6)]
    large = [rectangle(28, 40, x, x + 12, size) for x in (0, 12)]
    given = record(tmp_path / "a.png", photo(size=size), small + middle + large)
    m = mapper([T.NoOpTransform()], max_labels=12)
    areas = seeded(m, given)["instances"].gt_masks.tensor.sum(dim=(1, 2))
    assert sorted(areas.tolist()) == [4] * 5 + [36] * 5 + [144] * 2
    again, other = (seeded(m, given, seed=seed)["instances"].gt_boxes.tensor for seed in (0, 1))
    assert torch.equal(again, seeded(m, given)["instances"].gt_boxes.tensor)
    assert not torch.equal(again, other)
    # no sampling if all labels fit
    assert len(seeded(mapper([T.NoOpTransform()], max_labels=68), given)["instances"]) == 68
    strict = seeded(mapper([T.NoOpTransform()], max_labels=12, min_label_area=5), given)["instances"]
    assert sorted(strict.gt_masks.tensor.sum(dim=(1, 2)).tolist()) == [36] * 6 + [144] * 2


def test_no_labels_left(tmp_path):
    given = record(tmp_path / "a.png", photo(), [rectangle(0, 5, 0, 5)])
    instances = mapper([T.CropTransform(10, 10, 8, 8)])(given)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 8, 8)


def test_copy_paste(tmp_path):
    """A tree of three masks is pasted; a mask that covers the whole photo is not."""
    target = record(tmp_path / "a.png", np.full((20, 30, 3), 10, np.uint8), [rectangle(0, 20, 0, 15)])
    masks = [rectangle(2, 12, 2, 22), rectangle(4, 8, 4, 10), rectangle(5, 7, 5, 8), rectangle(0, 20, 0, 30)]
    donor = record(tmp_path / "b.png", np.full((20, 30, 3), 99, np.uint8), masks, [-1, 0, 1, -1])
    m = mapper([T.NoOpTransform()], copy_paste_probability=1.0, copy_paste_entities=5)
    with pytest.raises(RuntimeError, match="set_donors"):
        m(target)
    m.set_donors([target, donor])
    sample = seeded(m, target)
    covered = torch.from_numpy(rectangle(2, 12, 2, 22))
    assert torch.equal(sample["image"][0], torch.where(covered, 99, 10).to(torch.uint8))
    instances = sample["instances"]
    assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [300 - 130, 200, 24, 6]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1, 2] = expected[1, 3] = expected[2, 3] = True
    assert torch.equal(instances.gt_ancestors.tensor, expected)
    # the limit includes pasted labels, and an image is not its own donor
    m.max_labels = 2
    assert len(seeded(m, target)["instances"]) == 2
    m.set_donors([target])
    assert len(seeded(m, target)["instances"]) == 1
    # a donor that cannot be read
    m.set_donors([{**donor, "file_name": str(tmp_path / "gone.png")}])
    assert (seeded(m, target)["image"] == 10).all()


def test_probability_and_number_of_pasted_entities(tmp_path):
    target = record(tmp_path / "a.png", np.full((20, 30, 3), 10, np.uint8), [])
    wholes = [rectangle(0, 20, 3 * k, 3 * k + 2) for k in range(10)]
    donor = record(tmp_path / "b.png", np.full((20, 30, 3), 99, np.uint8), wholes)
    m = mapper([T.NoOpTransform()], copy_paste_probability=0.5, copy_paste_entities=3)
    m.set_donors([donor])
    np.random.seed(0)  # noqa: NPY002
    counts = np.bincount([len(m(target)["instances"]) for _ in range(200)], minlength=4)
    assert len(counts) == 4
    assert abs(counts[0] - 100) < 30 and (abs(counts[1:] - 33) < 20).all()


def broken_records(tmp_path):
    good = record(tmp_path / "good.png", photo(), [rectangle(0, 5, 0, 5)])
    (tmp_path / "text.png").write_text("no image")
    lying = record(tmp_path / "lying.png", photo(), [])
    twice = record(tmp_path / "p.png", photo(), [rectangle(0, 5, 0, 5)] * 3, [-1, 0, -1])
    twice["annotations"][2]["id"] = twice["annotations"][0]["id"]
    return {
        "missing": ({**good, "file_name": str(tmp_path / "gone.png")}, "gone.png.*does not exist"),
        "no image": ({**good, "file_name": str(tmp_path / "text.png")}, "text.png"),
        "turned": ({**lying, "height": 30, "width": 20}, r"lying.png.*\(20, 30\).*\(30, 20\)"),
        "mask of another size": (
            record(tmp_path / "mask.png", photo(), [np.ones((30, 20), bool)]),
            r"mask.png.*RLE has size \[30, 20\]",
        ),
        "ids that are ambiguous": (twice, "p.png.*two annotations have the id 10"),
    }


def test_broken_images_are_skipped(tmp_path, caplog):
    m = mapper([T.NoOpTransform()])
    for count, (given, message) in enumerate(broken_records(tmp_path).values(), start=1):
        with pytest.raises(InputError, match=message):
            m.map_or_raise(given)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert m(given) is None and m(given) is None
        assert len(caplog.records) == 1 and given["file_name"] in caplog.text
        assert m.skipped == 2 * count


def test_at_test_time(tmp_path):
    given = record(tmp_path / "a.png", photo(), [rectangle(0, 5, 0, 5)])
    m = PseudoLabelDatasetMapper(config(MIN_SIZE_TEST=10, MAX_SIZE_TEST=100), is_train=False)
    sample = m(given)
    assert sample["image"].shape == (3, 10, 15)
    assert "instances" not in sample and (sample["height"], sample["width"]) == (20, 30)
    with pytest.raises(InputError, match=r"gone.png"):
        m({**given, "file_name": "gone.png"})


@pytest.mark.parametrize(
    "settings",
    [
        {"FORMAT": "L"},
        {"MIN_LABEL_AREA": 0},
        {"MAX_LABELS": 0},
        {"COPY_PASTE__PROBABILITY": 1.5},
        {"RANDOM_FLIP": "up"},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="INPUT."):
        PseudoLabelDatasetMapper(config(**settings), is_train=True)
