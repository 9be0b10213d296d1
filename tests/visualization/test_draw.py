"""Drawings of forests: stable and distinct colours, visible masks, figures of any shape."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sohes_d2.cli import draw as tool
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks
from sohes_d2.visualization import (
    best_scored,
    draw_depth,
    draw_masks,
    draw_strips,
    draw_tree,
    forest_colors,
    forest_figure,
)
from sohes_d2.visualization.colors import _VISIONS, FAR_ENOUGH, WHOLE_PALETTE, oklch_to_rgb, rgb_to_oklab
from sohes_d2.visualization.draw import file_stem
from sohes_d2.visualization.overlay import level_indices
from sohes_d2.visualization.primitives import scaled_shape
from sohes_d2.visualization.strips import _chains


def box_mask(size, y0, x0, y1, x1):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def nested_forest(size=(60, 90)) -> Forest:
    """Two wholes side by side; the left one has two parts, one of which has a subpart with its own subpart."""
    boxes = [(0, 0, 60, 45), (0, 45, 60, 90), (5, 5, 30, 40), (35, 5, 55, 40), (8, 8, 25, 25), (10, 10, 20, 20)]
    return Forest(
        encode_masks([box_mask(size, *b) for b in boxes]),
        [-1, -1, 0, 0, 2, 4],
        size,
        scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
    )


def random_forest(n, size, seed=0) -> Forest:
    rng = np.random.RandomState(seed)
    boxes = []
    for _ in range(n):
        h, w = rng.randint(1, max(2, size[0] // 3)), rng.randint(1, max(2, size[1] // 3))
        y, x = rng.randint(0, size[0] - h + 1), rng.randint(0, size[1] - w + 1)
        boxes.append((y, x, y + h, x + w))
    masks = encode_masks(box_mask(size, *b) for b in boxes)
    return Forest.from_masks(masks, size, scores=rng.rand(n))


def photo(size, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


# Colours


def color_distance(a, b) -> np.ndarray:
    """OKLab distance of uint8 RGB colours (..., 3), minimum over the visions (1.0 is black to white)."""
    return np.min([np.linalg.norm(rgb_to_oklab(a, v) - rgb_to_oklab(b, v), axis=-1) for v in _VISIONS], axis=0)


def test_oklab_of_known_colors():
    # White is (1, 0, 0) by definition; red from the definition's own table (Ottosson, 2020).
    assert np.allclose(rgb_to_oklab(np.array([255, 255, 255])), (1, 0, 0), atol=1e-4)
    assert np.allclose(rgb_to_oklab(np.array([255, 0, 0])), (0.628, 0.225, 0.126), atol=2e-3)
    lab = rgb_to_oklab(np.array([40, 120, 200]))
    back = oklch_to_rgb([lab[0], np.hypot(lab[1], lab[2]), np.rad2deg(np.arctan2(lab[2], lab[1]))])[0]
    assert np.abs(back.astype(int) - (40, 120, 200)).max() <= 1


def test_colors_do_not_depend_on_the_order_of_the_masks():
    forest = random_forest(40, (80, 120))
    colors = forest_colors(forest)
    order = np.random.RandomState(1).permutation(len(forest))
    assert np.array_equal(forest_colors(forest.subset(order)), colors[order])
    assert colors.dtype == np.uint8 and colors.shape == (40, 3)


def test_touching_wholes_and_sibling_parts_differ_for_all_color_vision():
    colors = forest_colors(nested_forest())
    assert color_distance(colors[0], colors[1]) >= FAR_ENOUGH
    assert color_distance(colors[2], colors[3]) >= 0.08


def test_neighbours_in_a_grid_of_wholes_differ():
    size = (60, 60)
    masks = [box_mask(size, y, x, y + 10, x + 10) for y in range(0, 60, 10) for x in range(0, 60, 10)]
    colors = forest_colors(Forest(encode_masks(masks), [-1] * 36, size)).reshape(6, 6, 3)
    assert color_distance(colors[1:], colors[:-1]).min() > 0.1
    assert color_distance(colors[:, 1:], colors[:, :-1]).min() > 0.1
    assert len({tuple(c) for c in colors.reshape(-1, 3)}) > len(WHOLE_PALETTE) // 2


def test_parts_keep_the_hue_of_their_whole():
    colors = forest_colors(nested_forest((120, 180))).astype(np.int64)
    hues = np.rad2deg(np.arctan2(*rgb_to_oklab(colors)[:, [2, 1]].T))
    for part in (2, 3):
        assert abs((hues[part] - hues[0] + 180) % 360 - 180) < 35
    assert not np.array_equal(colors[2], colors[0])


def test_every_part_differs_from_its_parent_for_all_color_vision():
    size, n = (64, 64), 12
    chain = Forest(encode_masks([box_mask(size, k, k, 64 - k, 64 - k) for k in range(n)]), range(-1, n - 1), size)
    for forest in (random_forest(80, (80, 120)), chain):
        colors, child = forest_colors(forest), forest.parents >= 0
        assert child.any()
        assert color_distance(colors[child], colors[forest.parents[child]]).min() >= 0.059


def test_no_masks_no_colors():
    assert forest_colors(Forest([], [], (5, 5))).shape == (0, 3)


# Shapes


@pytest.mark.parametrize("target", [(10, 15), (60, 90), (130, 200), (400, 9)])
def test_scaled_shape_covers_the_same_place(target):
    mask = box_mask((60, 90), 20, 30, 40, 60)
    shape = scaled_shape(encode_masks([mask])[0], target)
    canvas = np.zeros(target, dtype=bool)
    canvas[shape.window] = shape.mask
    expected = np.zeros(target, dtype=bool)
    expected[round(target[0] / 3) : round(target[0] * 2 / 3), round(target[1] / 3) : round(target[1] * 2 / 3)] = True
    assert (canvas & expected).sum() / (canvas | expected).sum() > 0.75


def test_a_single_pixel_survives_shrinking_and_an_empty_mask_stays_empty():
    rles = encode_masks([box_mask((400, 600), 399, 599, 400, 600), np.zeros((400, 600), dtype=bool)])
    assert scaled_shape(rles[0], (20, 30)).mask.sum() == 1
    assert scaled_shape(rles[1], (20, 30)).mask.size == 0


# Overlays


def test_levels_are_wholes_parts_and_deeper_masks():
    forest = nested_forest()
    assert [level_indices(forest, level).tolist() for level in ("wholes", "parts", "subparts")] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    with pytest.raises(ValueError, match="wholes, parts, subparts"):
        level_indices(forest, "leaves")


def test_overlay_tints_masks_and_dims_the_rest():
    forest, image = nested_forest(), np.full((60, 90, 3), 128, np.uint8)
    colors = np.zeros((6, 3), np.uint8)
    colors[2], colors[3] = (255, 0, 0), (0, 0, 255)
    picture = draw_masks(image, forest, level_indices(forest, "parts"), colors).astype(int)
    assert picture.shape == image.shape
    red, blue, rest = picture[17, 30], picture[45, 20], picture[30, 70]
    assert red[0] - red[2] > 100 and blue[2] - blue[0] > 100
    assert rest.max() < 70 and rest.max() - rest.min() < 3


def test_small_masks_are_on_top_in_any_order():
    size = (40, 40)
    masks = [box_mask(size, 10, 10, 30, 30), box_mask(size, 0, 0, 40, 40)]
    colors = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)
    image = np.full((*size, 3), 128, np.uint8)
    for order in ([0, 1], [1, 0]):
        forest = Forest(encode_masks([masks[k] for k in order]), [-1, -1], size)
        centre = draw_masks(image, forest, [0, 1], colors[order])[20, 20].astype(int)
        assert centre[0] - centre[2] > 100


def test_of_equal_masks_the_better_scored_is_on_top():
    size = (30, 30)
    forest = Forest(
        encode_masks([box_mask(size, 5, 5, 25, 20), box_mask(size, 5, 10, 25, 25)]), [-1, -1], size, scores=[0.9, 0.2]
    )
    colors = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)
    middle = draw_masks(np.full((*size, 3), 128, np.uint8), forest, [0, 1], colors)[15, 15].astype(int)
    assert middle[0] > middle[2]


def test_grey_images_and_wrong_images():
    forest = nested_forest()
    grey = photo((60, 90))[..., 0]
    assert np.array_equal(draw_depth(grey, forest, 0), draw_depth(np.repeat(grey[..., None], 3, 2), forest, 0))
    with pytest.raises(ValueError, match=r"\(60, 91\).*\(60, 90\)"):
        draw_depth(photo((60, 91)), forest, 0)
    with pytest.raises(ValueError, match="uint8"):
        draw_depth(photo((60, 90)) / 255.0, forest, 0)


# Trees and figures


def test_tree_shows_the_number_of_omitted_masks():
    forest, image = random_forest(200, (100, 150)), photo((100, 150))
    tree = draw_tree(image, forest, width=1000)
    assert tree.shape[1] == 1000 and tree.shape[0] < 1000


def test_tree_shows_the_photo_in_frames_of_the_colors():
    forest, image = nested_forest(), np.full((60, 90, 3), (10, 200, 30), np.uint8)
    colors = forest_colors(forest)
    pixels = {tuple(p) for p in draw_tree(image, forest, colors, width=1600).reshape(-1, 3)}
    assert all(tuple(colors[k]) in pixels for k in (0, 1, 2, 3, 4))
    assert (10, 200, 30) in pixels


def test_one_depth_is_drawn_over_the_lines_of_its_wholes():
    forest, image = nested_forest(), np.full((60, 90, 3), 128, np.uint8)
    colors = np.zeros((6, 3), np.uint8)
    colors[4], colors[5] = (255, 0, 0), (0, 0, 255)
    two, three = draw_depth(image, forest, 2, colors).astype(int), draw_depth(image, forest, 3, colors).astype(int)
    assert two[15, 15, 0] - two[15, 15, 2] > 100  # not the mask of depth 3, which the level of subparts has on top
    assert three[15, 15, 2] - three[15, 15, 0] > 100
    assert three[9, 22].max() < 70  # the mask of depth 2 is not drawn
    plain = draw_masks(image, forest.subset([4]), [0], colors[[4]]).astype(int)  # without its wholes
    assert two[:, 44].max() > plain[:, 44].max() + 20  # the right edge of the whole
    assert np.array_equal(draw_depth(image, forest, 9), draw_masks(image, forest, []))


def test_strips_lead_to_the_deepest_part():
    forest, image = nested_forest(), photo((60, 90)) // 3  # dark: no colour of the palette
    colors = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (250, 0, 250), (0, 250, 250)], np.uint8)
    picture = draw_strips(image, forest, colors, width=1600)
    assert picture.shape[1] == 1600 and picture.shape[0] < 500
    present = [k for k, color in enumerate(colors) if (picture == color).all(axis=2).sum() > 1000]
    assert present == [0, 2, 4, 5]  # no whole without parts, and only the path to the deepest part
    starts = [np.flatnonzero((picture == colors[k]).all(axis=2).sum(axis=0) > 150)[0] for k in present]
    assert starts == sorted(starts) and starts[0] == 24
    # each tile also shows the next mask
    first = picture[:, starts[0] : starts[0] + 220]
    assert (first == colors[2]).all(axis=2).sum() > 50 and not (first == colors[4]).all(axis=2).any()


def test_strips_follow_the_deepest_path_and_the_best_come_first():
    size = (60, 90)
    # The smaller child of the first whole has deeper descendants; the second whole is larger but has one part.
    boxes = [(0, 0, 40, 40), (0, 0, 30, 30), (32, 0, 40, 8), (0, 0, 9, 9), (33, 1, 39, 7), (34, 2, 38, 6)]
    boxes += [(0, 45, 60, 90), (10, 50, 20, 60)]
    forest = Forest(encode_masks([box_mask(size, *b) for b in boxes]), [-1, 0, 0, 1, 2, 4, -1, 6], size)
    assert _chains(forest, 9) == [[0, 2, 4, 5], [6, 7]]
    assert _chains(forest, 3) == [[0, 4, 5], [6, 7]]


def test_strips_fit_any_width_and_thin_long_lines():
    size, n = (64, 64), 30
    masks = encode_masks([box_mask(size, k, k, 64 - k, 64 - k) for k in range(n)])
    chain = Forest(masks, range(-1, n - 1), size)
    colors = np.stack([np.arange(n) * 8 + 3, np.full(n, 250), np.zeros(n)], axis=1).astype(np.uint8)
    for width, tiles in ((300, 3), (1600, 6)):
        picture = draw_strips(np.zeros((64, 64, 3), np.uint8), chain, colors, width)
        assert picture.shape[1] == width
        frames = [k for k in range(n) if ((picture == colors[k]).all(axis=2).sum(axis=0) > 60).any()]
        assert len(frames) == tiles and frames[0] == 0 and frames[-1] == n - 1
    many = random_forest(120, (100, 150))
    assert draw_strips(photo((100, 150)), many, width=800).shape[0] < 800
    for forest in (Forest([], [], size), chain.subset([0])):
        assert draw_strips(np.zeros((64, 64, 3), np.uint8), forest, width=400).shape[0] < 80


def test_narrow_figures_keep_thumbnails_that_can_be_seen():
    forest, image = random_forest(60, (80, 120)), photo((80, 120))
    colors = forest_colors(forest)
    narrow = draw_tree(image, forest, colors, width=300)
    roots = [tuple(color) for color in colors[forest.roots()]]
    rows = {c: (narrow == c).all(axis=2).sum(axis=0).max() for c in roots}
    assert max(rows.values()) >= 56  # the side of a thumbnail of a whole, less its rounded corners
    figure = forest_figure(image, forest, "name", width=300, max_masks=10, max_area=0.5)
    assert figure.shape[1] == 300 and figure.shape[0] > 350  # pictures in rows of two, rows below each other
    assert (figure[:, -10:] >= 240).all()  # the right margin is empty


@pytest.mark.parametrize("size", [(60, 90), (1, 1), (5, 2000), (2000, 5), (200, 50), (50, 400)])
def test_figures_of_any_shape_stay_of_moderate_size(size):
    forest = random_forest(12, size)
    picture = forest_figure(photo(size), forest, title="a picture", width=800)
    assert picture.dtype == np.uint8 and picture.shape[1] == 800 and 150 < picture.shape[0] < 1600


@pytest.mark.parametrize("size", [(60, 90), (4, 900)])
def test_figures_of_no_mask_and_of_one(size):
    empty = forest_figure(photo(size), Forest([], [], size), width=600)
    one = forest_figure(photo(size), Forest(encode_masks([np.ones(size, dtype=bool)]), [-1], size), width=600)
    assert empty.shape[1] == one.shape[1] == 600 and empty.shape[0] < one.shape[0]
    nothing = forest_figure(photo(size), Forest(encode_masks([np.zeros(size, dtype=bool)]), [-1], size), width=600)
    assert nothing.shape[1] == 600


def test_figure_of_many_masks_and_of_a_deep_chain():
    assert forest_figure(photo((120, 160)), random_forest(600, (120, 160)), width=800).shape[0] < 1600
    size, n = (64, 64), 30
    masks = encode_masks([box_mask(size, k, k, 64 - k, 64 - k) for k in range(n)])
    assert forest_figure(photo(size), Forest(masks, range(-1, n - 1), size), width=800).shape[1] == 800


def test_large_forests_are_thinned_to_the_best_scores_and_relinked():
    forest = nested_forest()
    thinned = best_scored(forest, 2)
    assert np.allclose(thinned.scores, [0.9, 0.8])
    scores = Forest(forest.masks, forest.parents, forest.image_size, scores=[0.9, 0.1, 0.2, 0.2, 0.3, 0.8])
    assert best_scored(scores, 2).parents.tolist() == [-1, 0]  # the subpart is now a child of the whole
    image = photo((60, 90))
    assert not np.array_equal(forest_figure(image, forest, max_masks=3), forest_figure(image, forest))
    assert np.array_equal(forest_figure(image, forest, max_masks=0), forest_figure(image, forest, max_masks=6))


def test_figure_is_the_same_every_time_and_needs_room():
    forest, image = nested_forest(), photo((60, 90))
    assert np.array_equal(forest_figure(image, forest, "x"), forest_figure(image, forest, "x"))
    with pytest.raises(ValueError, match="240"):
        forest_figure(image, forest, width=200)


# The tool


def test_file_names_stay_in_the_folder_and_differ():
    names = ("a/b.jpg", "../../etc/passwd", "a_b.png", "A/B.png", "...", "/", "x" * 300 + ".jpg", "löwe 1.png", "-rf")
    taken: set[str] = set()
    stems = [file_stem(name, taken) for name in names]
    assert stems[:6] == ["a_b", "etc_passwd", "a_b-2", "A_B-3", "image", "image-2"]
    assert stems[7:] == ["löwe_1", "rf"]
    assert all("/" not in stem and "\\" not in stem and len(stem) <= 102 for stem in stems)
    assert len({stem.lower() for stem in stems}) == len(names)
    assert file_stem("<img src=x onerror=alert(1)>.png", taken) == "img_src_x_onerror_alert_1"


@pytest.fixture
def labels(tmp_path):
    """Images: one good in a sub-folder, one missing, one broken, one with masks of another size, one without any."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("sub/good.png", "other.png", "none.png"):
        Image.fromarray(photo((60, 90))).save(images / name)
    (images / "broken.jpg").write_bytes(b"\xff\xd8nonsense")
    names = ["sub/good.png", "missing.png", "broken.jpg", "other.png", "none.png"]
    content = {
        "images": [{"id": k, "file_name": name, "height": 60, "width": 90} for k, name in enumerate(names)],
        "annotations": nested_forest().to_coco(0, 1) + random_forest(3, (10, 10)).to_coco(3, 100),
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return path, images


def test_tool_draws_usable_images_and_reports_others(labels, tmp_path, capsys):
    path, images = labels
    output = tmp_path / "out"
    arguments = ["--json", str(path), "--images", str(images), "--output", str(output), "--width", "500"]
    code = tool.main([*arguments, "--entities", "0"])
    captured = capsys.readouterr()
    assert code == 3
    assert sorted(p.name for p in output.iterdir()) == ["forest_none.png", "forest_other.png", "forest_sub_good.png"]
    with Image.open(output / "forest_sub_good.png") as picture:
        assert picture.width == 500
    assert "6 masks (2 wholes, 2 parts, 2 subparts)" in captured.out
    assert "masks by depth: 0: 2, 1: 2, 2: 1, 3: 1" in captured.out
    for name in ("missing.png", "broken.jpg"):
        assert f"skipped '{name}'" in captured.err
    assert "other.png, annotation 100: the RLE has size" in captured.err


def test_tool_options(labels, tmp_path, capsys):
    path, images = labels
    arguments = [
        "--json",
        str(path),
        "--images",
        str(images),
        "--output",
        str(tmp_path / "o"),
        "--width",
        "500",
        "--max-images",
        "1",
    ]
    assert tool.main([*arguments, "--score-threshold", "0.65"]) == 0
    assert "3 masks (2 wholes, 1 parts, 0 subparts)" in capsys.readouterr().out
    assert tool.main([*arguments, "--entities", "1"]) == 0
    assert "(1 wholes, 2 parts, " in capsys.readouterr().out, "the best entity with what is inside of it"
    with pytest.raises(SystemExit, match="2"):
        tool.main([*arguments, "--max-area", "1.5"])


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 3}'])
def test_tool_reports_errors_of_a_json(tmp_path, capsys, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    assert tool.main(["--json", str(path), "--images", str(tmp_path), "--output", str(tmp_path / "o")]) == 2
    assert str(path) in capsys.readouterr().err


def test_masks_above_a_share_of_the_photo_can_be_dropped():
    masks = np.zeros((3, 40, 60), bool)
    masks[0] = True
    masks[1, 5:30, 5:40] = True
    masks[2, 10:20, 10:20] = True
    image = np.full((40, 60, 3), 120, np.uint8)
    forest = Forest.from_masks(encode_masks(masks), (40, 60))
    without = Forest.from_masks(encode_masks(masks[1:]), (40, 60))
    limited = forest_figure(image, forest, max_area=0.5)
    plain = forest_figure(image, without)
    assert limited.shape[0] > plain.shape[0]  # a line says that masks are left out
    assert np.array_equal(limited[-200:], plain[-200:])
    assert not np.array_equal(limited[-200:], forest_figure(image, forest)[-200:])
