"""The share of masks that come back in a changed photo."""

import numpy as np

from sohes_d2.exploration.stability import look_twice, stability, transformed
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks


def forest(masks, scores):
    return Forest.from_masks(encode_masks(np.stack(masks)), masks[0].shape, scores=np.array(scores, np.float32))


def find(image):
    """The bright area, which comes back mirrored; and, with a higher score, the top left corner, which does not."""
    corner = np.zeros(image.shape[:2], bool)
    corner[: image.shape[0] // 4, : image.shape[1] // 4] = True
    return forest([image[:, :, 1] > 128, corner], [0.5, 0.9])


def test_what_follows_the_photo_comes_back():
    image = np.full((40, 60, 3), 40, np.uint8)
    image[8:32, 32:56] = 240
    scores, returned = look_twice(find, image, np.random.default_rng(0))
    assert {round(score, 1): back for score, back in zip(scores.tolist(), returned)} == {0.5: True, 0.9: False}
    assert stability(find, image, np.random.default_rng(0), best=1) == 0
    assert stability(find, image, np.random.default_rng(0), best=2) == 0.5
    changed = transformed(image, np.random.default_rng(0))
    assert changed.shape == (30, 45, 3) and changed[15, 12].min() > 150 > changed[15, 35].max()
