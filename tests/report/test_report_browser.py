"""The page in a real browser: pixels, pointer, keys, two files linked, speed.

Needs the extra `browser` (playwright), and a Chromium or Chrome on the PATH or named by SOHES_BROWSER; else skipped.
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.report_files import (
    SIZE,
    box_mask,
    coco,
    nested_forest,
    page_data,
    result,
    write_json,
    write_photo,
)
from PIL import Image

from sohes_d2.cli.doctor import find_browser
from sohes_d2.report import ReportOptions, read_label_file, read_metrics, write_report
from sohes_d2.report import page as page_module
from sohes_d2.report.packing import embed_json, pack_masks
from sohes_d2.report.page import data_element, page_parts
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import decode_mask, encode_masks, iou_matrix

BROWSER = find_browser()
pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="no playwright: pip install '.[browser]'"),
    pytest.mark.skipif(
        not BROWSER, reason="no Chromium or Chrome: apt-get install chromium, or name one by SOHES_BROWSER"
    ),
]
ASSETS = Path(page_module.__file__).parent / "assets"
PAD = 14  # as in stage.js
LAUNCH = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 3}
ON_ITS_SIDE = {**PHONE, "viewport": {"width": 844, "height": 390}}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Inside a container there may be no user namespaces for Chromium's own sandbox; the pages are made here.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=LAUNCH)
        yield browser
        browser.close()


class Page:
    """An open page, and what went wrong in it."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **context})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def close(self):
        self.context.close()
        assert self.wrong == []
        assert [url for url in self.requests if not url.startswith(("data:", "file:"))] == []

    def screen(self, y, x, stage=0, size=SIZE):
        """Where the middle of a picture's pixel lies on the screen."""
        box = self.page.locator(".surface").nth(stage).bounding_box()
        scale = min((box["width"] - 2 * PAD) / size[1], (box["height"] - 2 * PAD) / size[0])
        return (
            box["x"] + box["width"] / 2 + (x + 0.5 - size[1] / 2) * scale,
            box["y"] + box["height"] / 2 + (y + 0.5 - size[0] / 2) * scale,
        )

    def frame(self):
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def point(self, y, x, stage=0):
        self.page.mouse.move(*self.screen(y, x, stage))
        self.frame()

    def click(self, y, x, stage=0):
        self.page.mouse.click(*self.screen(y, x, stage))
        self.frame()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def slide(self, name, value):
        self.page.evaluate(
            "([id, value]) => { const input = document.getElementById(id); input.value = value;"
            " input.dispatchEvent(new Event('input', {bubbles: true})); }",
            [f"filter-{name}", value],
        )

    def touch(self, kind, *points):
        """A touch event of Chromium's own; points are (x, y) on the screen."""
        self.cdp = getattr(self, "cdp", None) or self.context.new_cdp_session(self.page)
        points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(points)]
        self.cdp.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        self.frame()

    def tap(self, y, x, stage=0):
        self.page.touchscreen.tap(*self.screen(y, x, stage))
        self.frame()

    def save(self, button, path):
        self.page.click("#save-open")
        with self.page.expect_download() as download:
            self.page.click(button)
        download.value.save_as(path)
        return download.value.suggested_filename

    def texts(self, selector):
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    @property
    def crumbs(self):
        return self.texts("#crumbs .crumb")

    @property
    def caption(self):
        return self.texts("#caption .step"), self.texts("#caption .target")

    @property
    def rows(self):
        return self.texts("#tree .row .name")

    def color(self, canvas, y, x, stage=0):
        """RGBA of a canvas where the pixel's middle lies."""
        box = self.page.locator(".surface").nth(stage).bounding_box()
        left, top = self.screen(y, x, stage)
        return self.page.evaluate(
            "([c, n, x, y]) => [...document.querySelectorAll(c)[n].getContext('2d').getImageData(x, y, 1, 1).data]",
            [f".{canvas}", stage, round(left - box["x"]), round(top - box["y"])],
        )


@pytest.fixture
def opened(browser, tmp_path):
    pages = []

    def open_page(content, compare=None, metrics=None, photos=("a.png", "b.png"), context=None, **options):
        for name in photos:
            write_photo(tmp_path / "images" / name)
        file = read_label_file(write_json(tmp_path / "labels.json", content))
        other = None
        if compare is not None:
            other = read_label_file(write_json(tmp_path / "other.json", compare), results_allowed=True)
        if metrics is not None:
            metrics = read_metrics(write_json(tmp_path / "metrics.json", metrics))
        path = tmp_path / "report.html"
        write_report(path, file, tmp_path / "images", other, metrics, ReportOptions(**{"entities": 0, **options}))
        pages.append(Page(browser, path, **(context or {})))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def test_decoding_and_outlines_are_exact(browser):
    """Every pixel of random masks: asked for, in the patch, and inside the traced outline."""
    rng = np.random.RandomState(0)
    size = (31, 23)
    masks = [rng.rand(*size) < p for p in (0.01, 0.2, 0.5, 0.8, 0.99)]
    blob = np.zeros(size, bool)
    blob[3:20, 5:20] = True
    blob[6:15, 8:15] = False
    blob[9:12, 10:12] = True
    masks += [blob, np.ones(size, bool), np.eye(*size, dtype=bool), box_mask(0, 0, 31, 1, size)]
    masks += [box_mask(30, 22, 31, 23, size), box_mask(0, 4, 31, 9, size)]
    source = "\n".join((ASSETS / name).read_text() for name in ("runs.js", "contour.js"))
    page = browser.new_page()
    found = page.evaluate(
        """([source, counts, height, width]) => {
          const [Mask, encodeRuns] = new Function(source + '; return [Mask, encodeRuns];')();
          const context = document.createElement('canvas').getContext('2d');
          return counts.split(' ').map((text) => {
            const mask = new Mask(text, height);
            const patch = mask.patch();
            const rows = [[], [], []];
            for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
              const [py, px] = [y - mask.top + 1, x - mask.left + 1];
              const inPatch = py >= 0 && px >= 0 && py < patch.height && px < patch.width;
              rows[0].push(mask.contains(x, y));
              rows[1].push(inPatch && patch.pixels[py * patch.width + px] === 1);
              rows[2].push(context.isPointInPath(mask.path, x + 0.5, y + 0.5, 'evenodd'));
            }
            const sizes = [[height, width], [2 * height, 3 * width], [17, 11]];
            const texts = sizes.map(([h, w]) => encodeRuns(mask.endsAt(width, h, w)));
            return { rows, texts, box: [mask.top, mask.left, mask.bottom, mask.right] };
          });
        }""",
        [source, pack_masks(encode_masks(masks), size), *size],
    )
    page.close()
    for mask, answer in zip(masks, found):
        ys, xs = np.nonzero(mask)
        assert answer["box"] == [ys.min(), xs.min(), ys.max(), xs.max()]
        for row in answer["rows"]:
            assert np.array_equal(np.reshape(row, size), mask)
        assert answer["texts"][0].encode() == encode_masks([mask])[0]["counts"]
        for text, (height, width) in zip(answer["texts"][1:], ((62, 69), (17, 11))):
            ys, xs = (np.arange(height) + 0.5) * 31 / height, (np.arange(width) + 0.5) * 23 / width
            expected = mask[np.ix_(ys.astype(int), xs.astype(int))]
            assert np.array_equal(decode_mask({"size": [height, width], "counts": text.encode()}), expected)


def test_the_page_opens_on_the_selection(opened):
    page = opened(coco({1: "a.png"}), entities=2)
    assert page.texts("#filter-entities-value") == ["best 2"]
    assert page.rows == ["1", "2"] and page.texts("#shown") == ["5 of 6 masks"]
    page.click(15, 15)
    page.click(15, 15)
    assert page.crumbs == ["Picture", "2", "2.1"], "parts appear inside what is selected"
    page.slide("entities", 0)
    assert page.texts("#filter-entities-value") == ["best 1"] and page.texts("#shown") == ["4 of 6 masks"]
    assert page.crumbs == ["Picture", "1", "1.1"], "the names count what is shown"
    page.slide("entities", 9)
    assert page.texts("#filter-entities-value") == ["all masks"] and page.texts("#shown") == ["6 masks"]
    page.page.click("#filter-reset")
    assert page.texts("#filter-entities-value") == ["best 2"]


def test_hover_shows_the_smallest_mask_and_its_ancestors(opened):
    page = opened(coco({1: "a.png"}))
    page.point(15, 15)
    assert page.caption == (["2", "2.1", "2.1.1", "2.1.1.1"], ["2"])
    assert page.texts("#tree .hovered .name") == ["2"]
    inside, beside = page.color("over", 15, 15), page.color("over", 40, 70)
    assert inside[3] > 100 and beside[3] == 0
    page.point(40, 70)
    assert page.caption == (["1"], ["1"])
    page.page.mouse.move(5, 400)  # off the picture
    page.frame()
    assert page.caption == ([], []) and page.color("over", 15, 15)[3] == 0


def test_clicks_go_down_and_escape_goes_up(opened):
    page = opened(coco({1: "a.png"}))
    steps = [["Picture", "2"], ["2.1"], ["2.1.1"], ["2.1.1.1"]]
    expected = []
    for step in steps:
        page.click(15, 15)
        expected += step
        assert page.crumbs == expected
        assert page.texts("#tree [aria-selected=true] .name") == expected[-1:]
    page.click(15, 15)  # nothing smaller there
    assert page.crumbs == expected
    page.press("Escape")
    assert page.crumbs == expected[:-1]
    page.click(40, 70)  # somewhere else: the whole there
    assert page.crumbs == ["Picture", "1"]
    page.press("Escape", "Escape")
    assert page.crumbs == ["Picture"]
    page.page.click("#crumbs .crumb")
    assert page.crumbs == ["Picture"]


def test_arrows_walk_siblings_and_depths(opened):
    page = opened(coco({1: "a.png"}))
    page.press("ArrowDown")
    assert page.crumbs[-1] == "1"
    page.press("ArrowRight")
    assert page.crumbs[-1] == "2"
    page.press("ArrowRight")
    assert page.crumbs[-1] == "1"
    page.press("ArrowLeft", "Enter")
    assert page.crumbs == ["Picture", "2", "2.1"]
    page.press("ArrowRight")
    assert page.crumbs == ["Picture", "2", "2.2"]
    assert "2.2 of 2, depth 1, score 0.60, 13 % of the picture, 0 inside" in page.texts("#announcer")
    page.press("ArrowUp", "ArrowUp", "ArrowUp")
    assert page.crumbs == ["Picture"]


def test_the_tree_is_synchronised_and_has_its_own_keys(opened):
    page = opened(coco({1: "a.png"}))
    assert page.rows == ["1", "2"]
    page.page.locator("#tree .row").nth(1).focus()
    page.press("ArrowRight")
    assert page.rows == ["1", "2", "2.1", "2.2"]
    page.press("ArrowRight", "ArrowRight", "ArrowDown", "Enter")
    assert page.crumbs == ["Picture", "2", "2.1", "2.1.1"]
    page.press("Escape")
    assert page.crumbs == ["Picture", "2", "2.1"]
    page.press("ArrowLeft")
    assert page.rows == ["1", "2", "2.1", "2.2"]
    page.page.locator("#tree .row").nth(3).hover()
    page.frame()
    assert page.caption == (["2", "2.2"], ["2.2"]) and page.color("over", 45, 20)[3] > 60
    row = page.page.locator("#tree .row").nth(2)
    assert row.get_attribute("aria-label") == "2.1, score 0.70, 16 % of the picture, 1 inside"
    attributes = ("aria-level", "aria-posinset", "aria-setsize", "aria-expanded", "aria-selected")
    assert [row.get_attribute(name) for name in attributes] == ["2", "1", "2", "false", "true"]


def test_filters_relink_remaining_masks(opened):
    content = coco({1: "a.png", 2: "b.png"})
    content["annotations"][2]["score"] = 0.45
    page = opened(content)
    page.click(15, 15)
    page.click(15, 15)
    page.slide("score", 0.5)  # takes the selected part away, and the smallest subpart
    assert page.crumbs == ["Picture", "2"]
    assert page.rows == ["1", "2", "2.1", "2.2"] and page.texts("#shown") == ["4 of 6 masks"]
    page.slide("score", 0.4)
    page.slide("depth", 0)
    assert page.rows == ["1", "2"]
    page.slide("largest", 85)  # of 0..100 over five decades: 17.8 %
    assert page.rows == ["1", "2"] and page.texts("#shown") == ["2 of 6 masks"]
    page.slide("smallest", 84)
    assert page.rows == ["1"]
    page.press("j")
    assert page.texts("#shown") == ["1 of 6 masks"]  # the filters stay
    page.page.click("#filter-reset")
    assert page.texts("#shown") == ["6 masks"]
    page.slide("smallest", 100)
    assert page.texts("#empty") == ["The filters hide every mask."]


def test_two_files_are_linked(opened):
    results = [result(box_mask(5, 5, 30, 38), 1, 0.9), result(box_mask(40, 50, 50, 60), 1, 0.8)]
    page = opened(coco({1: "a.png"}), compare=results)
    page.click(32, 42)  # the left whole, which has no match
    assert page.texts(".chip:visible") == ["2, no match"]
    page.click(20, 30)
    assert page.crumbs[-1] == "2.1" and page.texts(".chip:visible") == ["2.1, IoU 0.94", "1, IoU 0.94"]
    page.press("Escape", "Escape")
    page.point(20, 20, stage=1)
    assert page.color("over", 20, 20, 1)[3] > 60 and page.color("over", 27, 34, 0)[3] > 60
    page.click(45, 55, stage=1)
    assert page.crumbs == ["Picture", "2"] and page.rows == ["1", "2"]
    page.press("x")
    assert page.rows[0] == "1" and page.page.locator("#tabs [aria-pressed=true]").inner_text() == "labels.json"
    page.page.click("text=Unmatched")
    assert page.texts("#shown") == ["5 of 6 masks"]
    page.page.click(".segmented >> text='Matched'")
    assert page.rows == ["1"] and page.texts("#shown") == ["1 of 6 masks"]


def test_a_hidden_match_is_shown_with_its_mask(opened):
    results = [result(box_mask(5, 5, 30, 38), 1, 0.3), result(box_mask(40, 50, 50, 60), 1, 0.8)]
    page = opened(coco({1: "a.png"}), compare=results)
    page.slide("score", 0.35)  # hides the match
    assert page.texts(".counter") == ["6 of 6 masks, 1 matched", "1 of 2 masks, 0 matched"]
    page.click(20, 30)
    page.point(20, 30)
    assert page.color("over", 20, 30, 1)[3] > 60, "the match of what is pointed at"
    assert page.texts("#caption .facts") == ["hidden in other.json, IoU 0.94"]
    page.click(20, 30)
    assert page.crumbs == ["Picture", "2", "2.1"]
    assert page.texts(".chip:visible") == ["2.1, IoU 0.94", "hidden, IoU 0.94"]
    cells = page.page.locator("#subject tr").evaluate_all(
        "(rows) => rows.map((r) => [...r.cells].map((c) => c.innerText))"
    )
    assert cells[:4] == [
        ["", "labels.json", "other.json"],
        ["Mask", "2.1", "hidden"],
        ["Score", "0.700", "0.300"],
        ["Size", "16 %", "15 %"],
    ]
    assert cells[-1] == ["IoU", "0.94", "0.94"]
    page.slide("score", 0)
    assert page.texts(".chip:visible") == ["2.1, IoU 0.94", "1, IoU 0.94"]
    assert page.page.locator("#tree [aria-selected=true] .match").inner_text() == "1"


def test_thumbnails_are_drawn_when_rows_become_visible(opened):
    content = coco({1: "a.png"})
    masks = [box_mask(y, x, y + 8, x + 8) for y in range(0, 50, 10) for x in range(0, 80, 10)]
    content["annotations"] = [{**result(mask, 1, 0.5), "id": k + 1} for k, mask in enumerate(masks)]
    page = opened(content)
    page.page.wait_for_selector(".thumbnail[data-drawn=photo]")
    drawn = page.page.locator(".thumbnail").evaluate_all("(all) => all.map((c) => c.dataset.drawn === 'photo')")
    assert len(drawn) == 40 and all(drawn[:8]) and not any(drawn[30:])
    page.page.locator("#tree .row").last.scroll_into_view_if_needed()
    page.page.wait_for_selector(".row:last-child .thumbnail[data-drawn=photo]")
    inside, outside = page.page.locator(".thumbnail").first.evaluate(
        "(c) => [[32, 32], [2, 32]].map(([x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data])"
    )
    assert inside[3] == 255 and outside[3] < 100  # the mask in full, what is beside it fainter


def test_the_shown_masks_can_be_saved(opened, tmp_path):
    page = opened(coco({1: "a.png", 2: "b.png"}))
    page.press("j")
    assert page.save("#save-json", tmp_path / "saved.json") == "b_masks.json"
    saved, expected = Forest.load(tmp_path / "saved.json"), nested_forest()
    assert saved.file_name == "b.png" and saved.image_size == SIZE
    order = [expected.masks.index(mask) for mask in saved.masks]
    assert sorted(order) == list(range(6))
    assert [order[p] if p >= 0 else -1 for p in saved.parents] == expected.parents[order].tolist()
    annotations = json.loads((tmp_path / "saved.json").read_text())["annotations"]
    assert [a["id"] for a in annotations] == [k + 7 for k in order], "the ids of the file"
    assert [(a["area"], a["bbox"]) for a in annotations] == [
        (int(expected.areas[k]), expected.boxes[k].tolist()) for k in order
    ]
    assert np.allclose(saved.scores, expected.scores[order])
    page.slide("score", 0.55)
    page.press("s")
    assert "4 masks" in page.texts("#save-what")[0]
    page.press("Escape")
    page.save("#save-json", tmp_path / "few.json")
    assert len(read_label_file(tmp_path / "few.json").by_image[1]) == 4
    assert page.save("#save-png", tmp_path / "saved.png") == "b_masks.png"
    picture = np.asarray(Image.open(tmp_path / "saved.png").convert("RGB")).astype(int)
    photo = np.asarray(Image.open(tmp_path / "images" / "b.png")).astype(int)
    assert picture.shape == photo.shape and np.abs(picture - photo)[20, 30].max() > 20


def test_masks_of_a_downsized_photo_are_saved_at_the_original_size(opened, tmp_path):
    page = opened(coco({1: "a.png"}), max_side=64)
    page.save("#save-json", tmp_path / "saved.json")
    saved, expected = Forest.load(tmp_path / "saved.json"), nested_forest()
    assert saved.image_size == SIZE
    ious = np.diag(iou_matrix(saved.masks, [expected.masks[k] for k in (1, 0, 2, 3, 4, 5)]))
    assert ious.min() > 0.75, "as exact as the smaller copy of the page"


def test_fingers(opened):
    page = opened(coco({1: "a.png"}), context=PHONE)
    page.tap(15, 15)
    page.tap(15, 15)
    assert page.crumbs == ["Picture", "2", "2.1"]
    page.page.tap("#up")
    assert page.crumbs == ["Picture", "2"]
    page.page.tap("#up")
    assert page.crumbs == ["Picture"] and page.page.locator("#up").is_disabled()

    x, y = page.screen(15, 15)
    page.touch("Start", (x - 20, y))
    page.touch("Start", (x - 20, y), (x + 20, y))
    page.touch("Move", (x - 60, y), (x + 60, y))  # three times as large around the middle
    page.touch("End")
    scale = page.page.evaluate("window.visualViewport.scale")
    assert scale == 1, "the picture is enlarged, not the page"
    assert page.crumbs == ["Picture"], "a pinch is no tap"
    page.page.touchscreen.tap(x, y)
    page.page.touchscreen.tap(x, y)
    page.page.touchscreen.tap(x, y)
    assert page.crumbs == ["Picture", "2", "2.1", "2.1.1"], "the same place lies below"
    page.page.tap("#crumbs .crumb")

    middle, edge = page.screen(15, 15), page.screen(15, 40)  # 25 pixels apart before, 8 now
    for _ in range(4):
        page.page.touchscreen.tap(*edge)
    assert page.crumbs == ["Picture", "2", "2.1", "2.1.1"]
    page.page.tap("#crumbs .crumb")
    page.touch("Start", middle)
    for step in range(1, 6):  # one finger moves the enlarged picture: what was under the finger goes with it
        page.touch("Move", (middle[0] + 12 * step, middle[1] + 8 * step))
    page.touch("End")
    assert page.page.evaluate("window.scrollY") == 0 and page.crumbs == ["Picture"]
    page.page.touchscreen.tap(middle[0] + 60, middle[1] + 40)
    page.page.touchscreen.tap(middle[0] + 60, middle[1] + 40)
    page.page.touchscreen.tap(middle[0] + 60, middle[1] + 40)
    assert page.crumbs[-1] == "2.1.1"


@pytest.mark.parametrize("context", [PHONE, ON_ITS_SIDE], ids=["upright", "on its side"])
def test_phones(opened, context):
    page = opened(coco({1: "a.png", 2: "b.png"}), context=context)
    width, height = context["viewport"]["width"], context["viewport"]["height"]
    page.page.locator("#tree .row .twist").last.tap()
    small = page.page.evaluate(
        """() => [...document.querySelectorAll('button, input, summary, [role=treeitem], .twist:not(.leaf), .surface')]
          .filter((e) => e.offsetParent !== null)
          .map((e) => (e.type === 'radio' ? e.parentElement : e))
          .filter((e) => { const box = e.getBoundingClientRect(); return box.width < 44 || box.height < 44; })
          .map((e) => e.outerHTML.slice(0, 90))"""
    )
    assert small == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.evaluate("window.scrollTo(0, 0)")
    surface, tree = page.page.locator(".surface").bounding_box(), page.page.locator("#tree").bounding_box()
    assert 0 <= surface["y"] and surface["y"] + surface["height"] <= height, "all of the picture is in sight"
    if context is PHONE:
        assert surface["width"] > 0.9 * width and tree["y"] > surface["y"] + surface["height"]
    else:
        assert surface["height"] > 0.9 * height and tree["x"] > surface["x"] + surface["width"]
        page.page.evaluate("window.scrollTo(0, 300)")
        assert page.page.locator(".surface").bounding_box()["y"] < 5, "it stays while the rest scrolls"
    page.page.tap("#save-open")
    assert min(page.page.locator("#save-json").bounding_box()[side] for side in ("width", "height")) >= 44


def test_missing_photos_names_and_metrics_are_shown_as_text(opened):
    name = "</script><img src=x onerror=alert(1)>.png"
    page = opened(coco({1: name, 2: "b.png"}), metrics={"segm/AR@1000": 12.345, "segm/AP": None}, title=name)
    assert page.texts("#image-name") == [name] and page.texts("h1") == [name]
    assert "the file does not exist" in page.texts(".note")[0]
    assert page.texts("#gallery .frame") == ["no photo", ""]
    page.click(15, 15)
    assert page.crumbs == ["Picture", "2"]  # masks work without the photo
    page.page.click("#metrics-open")
    assert page.texts("#metrics-body dt") == ["AR@1000", "AP"] and page.texts("#metrics-body dd") == ["12.35", "–"]


def test_images_without_masks_are_shown(opened):
    content = coco({1: "a.png", 2: "b.png"})
    content["annotations"] = content["annotations"][:6]
    page = opened(content)
    page.press("j", "ArrowDown", "ArrowRight", "Escape")
    page.click(20, 20)
    assert page.texts("#image-name") == ["b.png"] and page.crumbs == ["Picture"]
    assert page.texts("#empty") == ["No masks here."]


def test_images_are_listed_and_found(opened):
    page = opened(coco({1: "a.png", 2: "b.png"}))
    page.page.click("#gallery li:nth-child(2) button")
    assert page.texts("#image-name") == ["b.png"]
    assert page.page.locator("#gallery [aria-current=true]").get_attribute("title") == "b.png"
    page.press("/")
    page.page.keyboard.type("A.p")
    assert page.texts("#gallery li:visible .name") == ["a.png"] and page.texts("#found") == ["1 of 2"]


def test_light_and_dark(opened):
    page = opened(coco({1: "a.png"}), context={"color_scheme": "dark"})
    ground = "getComputedStyle(document.body).backgroundColor"
    brightness = lambda: int(page.page.evaluate(ground)[4:].split(",")[0])  # noqa: E731
    assert brightness() < 40
    page.page.click("#theme")  # auto, light, dark
    assert brightness() > 200
    page.page.click("#theme")
    assert brightness() < 40


def test_zoom_keeps_pointer_and_masks_together(opened):
    page = opened(coco({1: "a.png"}))
    x, y = page.screen(15, 15)
    page.page.mouse.move(x, y)
    page.page.mouse.wheel(0, -600)
    page.frame()
    page.page.mouse.move(x + 1, y)
    page.frame()
    assert len(page.caption[0]) == 4
    page.page.mouse.down()
    page.page.mouse.move(x + 300, y)
    page.page.mouse.up()
    assert page.crumbs == ["Picture"]  # a drag is no click
    page.press("0")
    page.point(15, 15)
    assert len(page.caption[0]) == 4


@pytest.mark.parametrize("width", [1300, 1000, 640])
def test_windows_of_any_width_show_the_picture_and_all_of_a_deep_tree(opened, width):
    chain = [box_mask(k, k, 60 - k, 80 - k) for k in range(13)]
    content = {**coco({1: "a.png"}), "annotations": []}
    for k, mask in enumerate(chain):
        content["annotations"].append({**result(mask, 1, 0.9 - k / 20), "id": k + 1, "parent_id": k})
    page = opened(content)
    page.page.set_viewport_size({"width": width, "height": 760})
    page.frame()
    page.press(*["ArrowDown"] * len(chain))
    rows = page.page.locator("#tree .row")
    assert rows.count() == len(chain)
    cut = rows.evaluate_all(
        """(rows) => rows.filter((row) => {
          const name = row.querySelector(".name");
          const last = row.lastElementChild.getBoundingClientRect();
          return name.scrollWidth > name.clientWidth || last.right > row.getBoundingClientRect().right;
        }).map((row) => row.innerText)"""
    )
    assert cut == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.page.locator(".surface").bounding_box()
    assert box["width"] > 300 and box["height"] > 300
    page.press(*["Escape"] * len(chain))
    page.point(30, 40)
    assert page.caption[1] == ["1"]


def test_every_control_has_a_name(opened):
    page = opened(coco({1: "a.png"}), compare=coco({1: "a.png"}), metrics={"a": 1})
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll('button, input, [role=application], [role=tree], nav, dialog')]
          .filter((e) => !(e.innerText || '').trim() && !e.getAttribute('aria-label')
            && !e.getAttribute('aria-labelledby') && !(e.labels && e.labels.length))
          .map((e) => e.outerHTML.slice(0, 90))"""
    )
    assert unnamed == []
    page.page.reload()
    page.page.wait_for_selector("html[data-ready]")
    order = []
    for _ in range(6):
        page.press("Tab")
        order.append(page.page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", order
    assert order[:4] == ["skip", "metrics-open", "help-open", "theme"]
    surface = page.page.locator(".surface").first
    box = surface.bounding_box()
    page.point(30, 45)
    page.page.mouse.wheel(0, -1500)  # until the picture fills its place
    surface.focus()
    page.frame()
    top = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 1, "width": 1, "height": 1}
    color = Image.open(io.BytesIO(page.page.screenshot(clip=top))).convert("RGB").getpixel((0, 0))
    assert color == (0x2F, 0x5F, 0xD8)  # the ring, above the picture


def test_two_hundred_images_of_a_hundred_masks_are_fast(browser, tmp_path):
    """The page of one image, its data repeated: loading and pointing do not depend on their being different."""
    size = (480, 640)
    rng = np.random.RandomState(0)
    ys, xs = np.mgrid[: size[0], : size[1]]
    masks = []
    for k in range(100):
        cy, cx, radius = rng.randint(60, 420), rng.randint(60, 580), 8 + 110 * rng.rand() ** (1 + k % 3)
        angle = np.arctan2(ys - cy, xs - cx)
        border = radius * (1 + 0.1 * np.cos(5 * angle + k) + 0.05 * np.cos(17 * angle) + 0.03 * np.cos(40 * angle))
        masks.append(np.hypot(ys - cy, xs - cx) < border)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 480, "width": 640}],
        "annotations": [result(mask, 1, float(score)) for mask, score in zip(masks, rng.rand(100))],
    }
    (tmp_path / "images").mkdir()
    photo = np.clip(ys[..., None] / 3 + rng.randn(*size, 3) * 25, 0, 255).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "images" / "a.png")
    path = tmp_path / "report.html"
    write_report(path, read_label_file(write_json(tmp_path / "labels.json", content)), tmp_path / "images")
    data = page_data(path)
    data["index"]["images"] *= 200
    before, after = page_parts("200")
    image = embed_json(data["image-0"])
    elements = [data_element(f"image-{k}", image) for k in range(200)]
    path.write_text("".join([before, *elements, data_element("index", embed_json(data["index"])), after]))
    assert path.stat().st_size > 20e6

    page = Page(browser, path)
    loads = []
    while len(loads) < 4 and min(loads, default=3000) >= 3000:  # again, if other work on the machine took its time
        page.page.reload()
        page.page.wait_for_selector("html[data-ready]")
        loads.append(page.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    box = page.page.locator(".surface").bounding_box()
    times = page.page.evaluate(
        """async ({ x, y, width, height }) => {
          const surface = document.querySelector('.surface');
          const times = [];
          for (let k = 0; k < 60; k++) {
            const at = { clientX: x + width * (0.2 + 0.6 * ((k * 37) % 60) / 60), bubbles: true,
                         clientY: y + height * (0.2 + 0.6 * ((k * 23) % 60) / 60) };
            surface.dispatchEvent(new PointerEvent('pointermove', at));
            // Our callback comes after the page's own in the same frame: the time since the frame began is its work.
            times.push(await new Promise((done) => requestAnimationFrame((start) => done(performance.now() - start))));
          }
          return times;
        }""",
        box,
    )
    page.close()
    hover = np.percentile(times, [25, 50, 95]).round(1).tolist()
    print(json.dumps({"bytes": path.stat().st_size, "load ms": loads, "hover ms": hover}))
    assert min(loads) < 3000
    assert hover[0] < 16  # other work on the machine comes between some of the frames
