"""Strong view of an image for the student, computed from the teacher's weak view.

As in HASSOD (Cao et al., NeurIPS 2023), with the operations of Unbiased Teacher (Liu et al., ICLR 2021). Only pixel
values change, not positions, so masks are valid for both views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY

# Aspect ratio (height / width) of erased rectangles, as in Random Erasing (Zhong et al., AAAI 2020, section 3).
_ERASE_ASPECTS = (0.3, 3.3)


def needs_teacher_view(cfg: Any) -> bool:
    """Whether the model of a config learns from a teacher, so that it needs a weak view and no labels.

    Such models have the class attribute ``needs_teacher_view = True``.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and getattr(META_ARCH_REGISTRY.get(name), "needs_teacher_view", False)


class StrongView:
    """Colour jitter, conversion to grey, blur and erased rectangles, in this order, each with its probability.

    Uses OpenCV for speed: for 1024 x 1024 pixels, torchvision takes 60 ms for the hue and 80 to 150 ms for the blur.
    """

    @configurable
    def __init__(
        self,
        *,
        jitter: float = 0.4,
        hue: float = 0.1,
        jitter_probability: float = 0.8,
        grey_probability: float = 0.2,
        blur_probability: float = 0.5,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        erase_probability: float = 0.5,
        erase_count: int = 3,
        erase_area_ratio: Sequence[float] = (0.02, 0.1),
    ):
        """
        Args:
            jitter: 0..1; brightness, contrast and saturation are each scaled by a factor in 1 - jitter .. 1 + jitter.
            hue: 0..0.5, largest shift of the hue, as a share of the hue circle, in either direction.
            jitter_probability: probability of changing these four, in random order.
            grey_probability: probability of conversion to grey.
            blur_probability: probability of a Gaussian blur.
            blur_sigma: range of its standard deviation in pixels, uniform.
            erase_probability: probability of filling 1 to ``erase_count`` (uniform) rectangles with noise.
            erase_count: largest number of rectangles, at least 1.
            erase_area_ratio: range of the area of each rectangle as a share of the image, uniform.

        Raises:
            ValueError: a setting out of range.
        """
        _require(0 <= jitter <= 1, "JITTER", jitter, "in [0, 1]")
        _require(0 <= hue <= 0.5, "HUE", hue, "in [0, 0.5]")
        _require(0 < blur_sigma[0] <= blur_sigma[1], "BLUR_SIGMA", blur_sigma, "0 < least <= most")
        least, most = erase_area_ratio
        _require(0 < least <= most <= 1, "ERASE_AREA_RATIO", erase_area_ratio, "0 < least <= most <= 1")
        _require(erase_count >= 1, "ERASE_COUNT", erase_count, "at least 1")
        probabilities = {
            "JITTER": jitter_probability,
            "GREY": grey_probability,
            "BLUR": blur_probability,
            "ERASE": erase_probability,
        }
        for name, value in probabilities.items():
            _require(0 <= value <= 1, f"{name}_PROBABILITY", value, "in [0, 1]")
        self.jitter = jitter
        self.hue = hue
        self.jitter_probability = jitter_probability
        self.grey_probability = grey_probability
        self.blur_probability = blur_probability
        self.blur_sigma = tuple(blur_sigma)
        self.erase_probability = erase_probability
        self.erase_count = erase_count
        self.erase_area_ratio = tuple(erase_area_ratio)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {name.lower(): value for name, value in cfg.CORRECTION.VIEWS.items()}

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Args:
            image: (H, W, 3) uint8 RGB, with any strides; not modified.
            rng: random generator.

        Returns:
            (H, W, 3) uint8 RGB, a new array.
        """
        view = np.array(image, order="C")
        if rng.random() < self.jitter_probability:
            view = self._jittered(view, rng)
        if rng.random() < self.grey_probability:
            view = _grey(view)
        if rng.random() < self.blur_probability:
            view = cv2.GaussianBlur(view, (0, 0), rng.uniform(self.blur_sigma[0], self.blur_sigma[1]))
        if rng.random() < self.erase_probability:
            for _ in range(rng.integers(1, self.erase_count + 1)):
                _erase(view, rng.uniform(self.erase_area_ratio[0], self.erase_area_ratio[1]), rng)
        return view

    def _jittered(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for operation in rng.permutation(4):
            if operation == 3:
                image = turn_hue(image, rng.uniform(-self.hue, self.hue))
            else:
                adjust = (adjust_brightness, adjust_contrast, adjust_saturation)[operation]
                image = adjust(image, rng.uniform(1 - self.jitter, 1 + self.jitter))
        return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply (H, W, 3) uint8 RGB by a factor >= 0; 1 changes nothing."""
    return cv2.addWeighted(image, factor, image, 0, 0)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance of (H, W, 3) uint8 RGB from the mean grey level by a factor >= 0; 1 changes nothing."""
    mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance of (H, W, 3) uint8 RGB from its grey version by a factor >= 0; 1 changes nothing."""
    return cv2.addWeighted(image, factor, _grey(image), 1 - factor, 0)


def turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Shift the hue of (H, W, 3) uint8 RGB by a share of the hue circle, rounded to 1/256; 0 changes nothing."""
    steps = round(256 * turn) % 256
    if steps == 0:  # the conversion to HSV and back would change values by up to 5
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[:, :, 0] += np.uint8(steps)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _erase(image: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Fill a random rectangle, ``share`` of the image, with noise in place; a fixed colour could be recognised."""
    height, width = image.shape[:2]
    aspect = np.exp(rng.uniform(*np.log(_ERASE_ASPECTS)))
    area = share * height * width
    h = min(height, max(1, round(np.sqrt(area * aspect))))
    w = min(width, max(1, round(area / h)))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    image[y : y + h, x : x + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)


def _require(holds: bool, key: str, value: Any, rule: str) -> None:
    if not holds:
        raise ValueError(f"CORRECTION.VIEWS.{key} must be {rule}, got {value!r}")
