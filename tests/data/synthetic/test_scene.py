"""Synthetic scenes: reproducible, with a forest of the visible masks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from helpers.forest_checks import check_coverage

from sohes_d2.data.synthetic.drawing import (
    Box,
    Ellipse,
    Frame,
    Paint,
    Polygon,
    blur,
    grain,
    random_color,
    shifted,
    smoothed,
    star,
    stripes,
    value_noise,
)
from sohes_d2.data.synthetic.kinds import KINDS, Piece
from sohes_d2.data.synthetic.scene import MIN_AREA, MOST_THINGS, _Scene, generate_scene
from sohes_d2.structures.masks import coverage_matrix, decode_masks, mask_areas

SIZE = (64, 80)
GREY = Paint((0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(7, index) for index in range(12)]


def digest(scene) -> str:
    image, forest = scene
    parts = [image.tobytes(), *(mask["counts"] for mask in forest.masks), forest.parents.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def empty_scene() -> _Scene:
    return _Scene(SIZE, (0.2, 0.3, 0.4), np.random.default_rng(0))


def box(height: float, width: float, *parts: Piece, **place) -> Piece:
    return Piece(Box(height, width), GREY, parts=list(parts), **place)


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    assert digest(generate_scene(7, 3)) == digest(scenes[3])
    others = {digest(scene) for scene in scenes} | {digest(generate_scene(8, 3)), digest(generate_scene(7, 10**6))}
    assert len(others) == len(scenes) + 2


def test_scenes_are_bit_identical_on_every_machine():
    """After an intended change of the scenes, raise VERSION and update the digests."""
    assert digest(generate_scene(0, 0)) == "dbf530dc9b537028"
    assert digest(generate_scene(0, 1, (96, 128))) == "b734311156f40cd2"


def test_forests_follow_the_rules(scenes):
    depths = np.zeros(8, int)
    for image, forest in scenes:
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8 and image.std() > 5
        check_coverage(forest, 1.0)
        areas = mask_areas(forest.masks)
        assert areas.min() >= MIN_AREA
        assert 1 <= len(forest.roots()) <= MOST_THINGS
        inner = np.flatnonzero(forest.parents >= 0)
        assert (areas[inner] <= 0.8 * areas[forest.parents[inner]]).all()
        # masks are visible pixels: only a mask and its ancestors share pixels
        related = forest.ancestors() | forest.ancestors().T | np.eye(len(forest), dtype=bool)
        assert coverage_matrix(forest.masks, forest.masks)[~related].max(initial=0) == 0
        depths += np.bincount(forest.depths(), minlength=8)
    assert (depths[:3] > 20).all()  # wholes, parts and subparts


def test_sizes_vary(scenes):
    areas = np.concatenate([mask_areas(forest.masks) for _, forest in scenes])
    assert (areas < 300).sum() > 20 and (areas > 1000).sum() > 20


@pytest.mark.parametrize("size", [(32, 32), (48, 100)])
def test_any_size(size):
    image, forest = generate_scene(1, 2, size, min_area=16)
    assert image.shape == (*size, 3) and forest.image_size == size
    check_coverage(forest, 1.0)
    assert mask_areas(forest.masks).min() >= 16


def test_invalid_scenes_are_errors():
    with pytest.raises(ValueError, match="at least 32 x 32"):
        generate_scene(0, 0, (31, 64))
    with pytest.raises(ValueError, match="negative"):
        generate_scene(-1, 0)


def test_a_hidden_part_is_dropped_and_masks_are_visible_pixels():
    scene = empty_scene()
    scene.add(box(1.0, 2.0, box(0.6, 0.4, x=-1.2), box(0.6, 0.4, x=1.2)), Frame(32, 40, 15))
    scene.add(box(1.0, 0.6), Frame(32, 58, 15))  # columns 49..67 cover the right part completely
    forest = scene.forest(min_area=20)
    assert forest.parents.tolist() == [-1, 0, -1]
    whole, part, occluder = decode_masks(forest.masks)
    assert occluder[17:47, 49:67].all() and occluder.sum() == 30 * 18
    assert whole.sum() == 30 * 60 - occluder.sum() and not (whole & occluder).any()
    assert part.sum() == 18 * 12 and (part <= whole).all() and part[32, 22]


def test_parts_of_a_dropped_part_move_to_its_parent():
    scene = empty_scene()
    core = box(0.3, 0.3)
    scene.add(box(1.0, 1.0, box(0.95, 0.95, core)), Frame(32, 40, 20))  # the part is 90 % of the whole
    forest = scene.forest(min_area=20)
    assert forest.parents.tolist() == [-1, 0]
    assert mask_areas(forest.masks).tolist() == [40 * 40, 12 * 12]


def test_an_object_of_parts_alone_is_their_union():
    scene = empty_scene()
    parts = [box(0.5, 0.5, x=x, clipped=False) for x in (-0.8, 0.8)]
    scene.add(Piece(None, None, parts=parts), Frame(32, 40, 10))
    whole, left, right = decode_masks(scene.forest(min_area=20).masks)
    assert left.sum() == right.sum() == 100 and ((left | right) == whole).all()


def test_a_clipped_part_ends_with_its_surface():
    scene = empty_scene()
    scene.add(box(1.0, 1.0, box(0.5, 1.0, x=1.0)), Frame(32, 40, 10))
    whole, part = decode_masks(scene.forest(min_area=20).masks)
    assert whole.sum() == 400 and part.sum() == 100 and (part <= whole).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_a_visible_object(kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scene = empty_scene()
        scene.add(kind(rng, random_color(rng)), Frame(32, 40, 24))
        forest = scene.forest(min_area=10)
        assert len(forest.roots()) == 1
        assert 400 < mask_areas(forest.masks)[0] < 64 * 80
        if kind.__name__ not in ("plain", "decorated"):
            assert forest.depths().max() >= 2


def test_shapes_have_their_areas():
    y, x = Frame(50, 50, 40).coordinates((100, 100))
    expected = {
        Ellipse(0.5, 1.0): np.pi * 0.5,
        Box(0.5, 1.0): 2.0,
        Box(0.5, 1.0, 0.5): 1.0 + np.pi * 0.25,
        Polygon(((-1, -1), (-1, 1), (1, 1), (1, -1), (0, 0))): 3.0,  # without the left quarter
        star([1.0] * 4): 2.0,
        star([1.0] * 4, aspect=0.5): 1.0,
    }
    for shape, area in expected.items():
        assert shape.inside(y, x).sum() / 40**2 == pytest.approx(area, rel=0.02), shape
    blob = smoothed(star([1.0] * 4))
    assert len(blob.corners) == 32 and 1.4 < blob.inside(y, x).sum() / 40**2 < 2.0


def test_frames_rotate_and_nest():
    inner = Frame(10, 20, 4, turn=0.25).inner(0.0, 2.0, unit=0.5, turn=-0.25)
    # inner() places the x axis after a quarter turn where coordinates() has it
    y, x = Frame(10, 20, 4, turn=0.25).coordinates((40, 40))
    row, col = int(inner.y - 0.5 + 1e-6), int(inner.x)
    assert (inner.unit, inner.turn) == (2.0, 0.0)
    assert abs(y[row, col]) <= 0.25 and abs(x[row, col] - 2) <= 0.25
    assert (inner.y, inner.x) == pytest.approx((18.0, 20.0))


def test_surfaces():
    rng = np.random.default_rng(0)
    noise = value_noise((30, 40), 5.0, rng)
    assert noise.shape == (30, 40) and 0 <= noise.min() < 0.3 and 0.7 < noise.max() <= 1
    assert np.abs(np.diff(noise, axis=1)).max() < 0.35  # smooth
    assert np.abs(stripes((30, 40), 6.0, 0.1, rng)).max() <= 1
    assert grain((100, 100), rng).std() == pytest.approx(1, abs=0.05)
    texture = Paint((0.4, 0.2, 0.6), "noise", strength=0.5, period=3.0).render((60, 60), rng)
    assert (
        texture.mean(axis=(0, 1)) == pytest.approx([0.4, 0.2, 0.6], rel=0.1) and texture.std(axis=(0, 1)).min() > 0.01
    )
    for seed in range(20):
        color = random_color(np.random.default_rng(seed))
        assert 0 <= min(color) and 0.2 <= max(color) <= 0.9


def test_blur_and_shift():
    image = np.zeros((5, 7))
    image[2, 3] = 16.0
    assert blur(image)[1:4, 2:5].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert (blur(np.ones((4, 4, 3)), 3) == 1).all()
    mask = image > 0
    assert np.argwhere(shifted(mask, 1, -3)).tolist() == [[3, 0]]
    assert not shifted(mask, -3, 0).any() and (shifted(mask, 0, 0) == mask).all()
