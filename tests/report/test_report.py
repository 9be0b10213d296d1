"""The page: contents of the files, size, safety, and records it cannot show."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.report_files import BOXES, SIZE, box_mask, coco, page_data, result, write_json, write_photo
from PIL import Image

from sohes_d2.errors import InputError
from sohes_d2.report import (
    LabelFile,
    ReportOptions,
    build,
    match_masks,
    read_label_file,
    read_metrics,
    write_report,
)
from sohes_d2.report.build import data_element
from sohes_d2.report.label_file import image_forest, match_images, names_of
from sohes_d2.report.packing import COUNTS_TO_PAGE, pack_masks, photo_path
from sohes_d2.structures.masks import decode_mask, encode_masks
from sohes_d2.visualization.colors import forest_colors

FROM_PAGE = bytes.maketrans(b"pq", b"<\\")


def unpack(counts: str, size) -> list[np.ndarray]:
    texts = counts.split(" ") if counts else []
    return [decode_mask({"size": list(size), "counts": text.encode().translate(FROM_PAGE)}) for text in texts]


def report(tmp_path, content, photos=("a.png",), compare=None, **options):
    """Write the files and the page; returns its data, the summary and its path."""
    for name in photos:
        write_photo(tmp_path / "images" / name)
    (tmp_path / "images").mkdir(exist_ok=True)
    file = read_label_file(write_json(tmp_path / "labels.json", content))
    other = None
    if compare is not None:
        other = read_label_file(write_json(tmp_path / "other.json", compare), results_allowed=True)
    page = tmp_path / "report.html"
    summary = write_report(page, file, tmp_path / "images", other, None, ReportOptions(**options))
    return page_data(page), summary, page


# What is in the page


def test_masks_parents_and_scores_are_in_the_page(tmp_path):
    data, summary, _ = report(tmp_path, coco({7: "a.png"}))
    assert summary.complete and summary.images == 1 and summary.masks == [6]
    image = data["image-0"]
    assert (image["height"], image["width"]) == SIZE
    side = image["sides"][0]
    # By descending area; of the two equal wholes the one with the better score comes last, on top.
    order = [1, 0, 2, 3, 4, 5]
    assert side["ids"] == [str(k + 1) for k in order]
    assert side["parents"] == [-1, -1, 1, 1, 2, 4]
    assert side["scores"] == [0.8, 0.9, 0.7, 0.6, 0.5, 0.4]
    assert side["areas"] == [0.5, 0.5, 0.162, 0.1296, 0.05352, 0.01852]
    for mask, k in zip(unpack(side["counts"], SIZE), order):
        assert np.array_equal(mask, box_mask(*BOXES[k]))
    assert data["index"]["images"][0]["scores"] == [0.4, 0.9]
    assert data["index"]["images"][0]["depths"] == [3]


def test_colors_equal_those_of_the_pictures(tmp_path):
    content = coco({1: "a.png"})
    data, _, _ = report(tmp_path, content)
    forest = image_forest(read_label_file(tmp_path / "labels.json"), 1, SIZE).forest
    assert bytes.fromhex(data["image-0"]["sides"][0]["colors"]) == forest_colors(forest).tobytes()


def test_large_images_and_masks_are_downsized_without_losing_masks(tmp_path):
    size = (600, 900)
    masks = [box_mask(100, 200, 500, 700, size), box_mask(300, 300, 301, 301, size)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 600, "width": 900}],
        "annotations": [result(mask, 1) for mask in masks],
    }
    write_photo(tmp_path / "images" / "a.png", size)
    data, _, _ = report(tmp_path, content, photos=(), max_side=90)
    image = data["image-0"]
    assert (image["height"], image["width"]) == (60, 90)
    large, small = unpack(image["sides"][0]["counts"], (60, 90))
    assert np.array_equal(large, box_mask(10, 20, 50, 70, (60, 90)))
    assert small.sum() == 1 and small[30, 30]
    assert image["sides"][0]["areas"] == [round(400 * 500 / 540000, 4), 1.852e-06]  # of the full-size mask
    photo = Image.open(io.BytesIO(base64.b64decode(image["photo"].split(",")[1])))
    assert photo.size == (90, 60) and photo.format in ("WEBP", "JPEG")


def test_counts_survive_the_replacement_of_characters():
    rng = np.random.RandomState(0)
    masks = [rng.rand(80, 70) < p for p in (0.02, 0.3, 0.5, 0.9)]
    packed = pack_masks(encode_masks(masks), (80, 70))
    assert "<" not in packed and "\\" not in packed
    assert b"".join(r["counts"] for r in encode_masks(masks)).translate(COUNTS_TO_PAGE) != b"".join(
        r["counts"] for r in encode_masks(masks)
    )  # some characters were replaced
    for mask, read in zip(masks, unpack(packed, (80, 70))):
        assert np.array_equal(mask, read)


def test_plain_coco_gets_its_hierarchy_by_coverage(tmp_path):
    data, _, _ = report(tmp_path, coco({1: "a.png"}, hierarchy=False))
    side = data["image-0"]["sides"][0]
    assert side["byCoverage"] and side["parents"] == [-1, -1, 1, 1, 2, 4]
    assert not data["index"]["files"][0]["hierarchy"]


def test_files_of_equal_name_are_distinguished():
    def names(*paths):
        return names_of([LabelFile(path) for path in paths])

    assert names("mine/labels.json", "mine/demo/labels.json") == ["mine/labels.json", "demo/labels.json"]
    assert names("a/x/labels.json", "b/x/labels.json") == ["a/x/labels.json", "b/x/labels.json"]
    assert names("labels.json", "demo/labels.json") == ["labels.json", "demo/labels.json"]
    assert names("a/one.json", "a/two.json") == ["one.json", "two.json"]
    assert names("a/one.json", "a/one.json") == ["one.json", "one.json"]
    assert names("a/one.json") == ["one.json"]


def test_options_drop_masks_and_relink_their_children(tmp_path):
    content = coco({1: "a.png"})
    content["annotations"][2]["score"] = 0.1  # the part in the middle of the chain
    data, summary, _ = report(tmp_path, content, score_threshold=0.3)
    side = data["image-0"]["sides"][0]
    assert side["ids"] == ["2", "1", "4", "5", "6"] and side["parents"] == [-1, -1, 1, 1, 3]
    assert summary.masks == [5]
    data, _, _ = report(tmp_path, content, max_masks=2)
    assert data["image-0"]["sides"][0]["ids"] == ["2", "1"]
    content = coco({k: f"{k}.png" for k in range(1, 6)})
    data, summary, _ = report(tmp_path, content, max_images=2)
    assert summary.images == 2 and data["index"]["left"] == 3 and "image-2" not in data


def test_scores_may_be_anything_and_images_may_have_no_masks(tmp_path):
    content = coco({1: "a.png", 2: "b.png"})
    content["annotations"] = content["annotations"][:6]
    for annotation in content["annotations"]:
        annotation["score"] -= 7
    data, summary, _ = report(tmp_path, content, ("a.png", "b.png"))
    assert summary.complete and summary.masks == [6]
    assert data["index"]["images"][0]["scores"] == [-6.6, -6.1]
    assert data["index"]["images"][1]["scores"] == [] and data["image-1"]["sides"][0]["counts"] == ""


def test_class_names_label_masks_where_a_file_has_several(tmp_path):
    content = coco({1: "a.png"})
    content["categories"] = [{"id": 1, "name": "cup"}, {"id": 2, "name": "spoon"}]
    content["annotations"][1]["category_id"] = 2
    data, _, _ = report(tmp_path, content)
    assert data["image-0"]["sides"][0]["labels"] == ["spoon", "cup", "cup", "cup", "cup", "cup"]
    content["categories"].pop()
    data, _, _ = report(tmp_path, content)
    assert data["image-0"]["sides"][0]["labels"] is None


def test_the_same_files_give_the_same_page(tmp_path):
    _, _, page = report(tmp_path, coco({1: "a.png"}))
    first = page.read_bytes()
    report(tmp_path, coco({1: "a.png"}))
    assert page.read_bytes() == first
    assert not list(tmp_path.glob("*.tmp"))


# What cannot be shown


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "/etc/passwd",
        "C:\\secret.png",
        "\\\\host\\x.png",
        "..\\x.png",
        "a\0b",
        "",
    ],
)
def test_names_never_point_outside_the_folder(tmp_path, name):
    with pytest.raises(InputError):
        photo_path(tmp_path, name)


def test_a_name_with_dot_dot_is_refused(tmp_path):
    write_photo(tmp_path / "secret.png")
    data, summary, _ = report(tmp_path, coco({1: "../secret.png", 2: "sub/a.png"}), photos=("sub/a.png",))
    assert not summary.complete and len(summary.missing) == 1
    assert "points outside the images folder" in summary.missing[0]
    assert data["image-0"]["photo"] is None and data["image-1"]["photo"].startswith("data:image/")


def test_missing_and_mismatched_photos_are_counted_and_their_masks_shown(tmp_path):
    write_photo(tmp_path / "images" / "square.png", (60, 60))
    write_photo(tmp_path / "images" / "double.png", (120, 180))
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    content = coco({1: "gone.png", 2: "square.png", 3: "double.png", 4: "broken.png"})
    data, summary, _ = report(tmp_path, content, photos=())
    assert summary.images == 4 and summary.masks == [24]
    assert len(summary.missing) == 3
    assert "the file does not exist" in summary.missing[0]
    assert "60 x 60 (height x width), its labels are for 60 x 90" in summary.missing[1]
    assert [bool(image["thumbnail"]) for image in data["index"]["images"]] == [False, False, True, False]
    assert len(unpack(data["image-0"]["sides"][0]["counts"], SIZE)) == 6


def test_invalid_masks_are_skipped_and_reported(tmp_path):
    content = coco({1: "a.png"})
    annotations = content["annotations"]
    annotations[2]["segmentation"] = {"size": [60, 90], "counts": "11"}
    annotations[3]["segmentation"] = {"size": [60, 90], "counts": [60 * 90]}
    annotations[1]["segmentation"] = [[0, 0, 1e9, 0, 1e9, 1e9]]
    annotations[5]["score"] = "high"
    data, summary, _ = report(tmp_path, content)
    side = data["image-0"]["sides"][0]
    assert side["ids"] == ["1", "5", "6"] and side["parents"] == [-1, 0, 1] and side["scores"] == [0.9, 0.5, 0.0]
    assert len(summary.problems) == 4 and not summary.complete
    text = "\n".join(summary.problems)
    for reason in ("annotation 3: the runs", "annotation 4: the mask is empty", "far outside", "'high'; taken as 0"):
        assert reason in text


def test_unusable_parents_fall_back_to_coverage(tmp_path):
    content = coco({1: "a.png"})
    content["annotations"][0]["parent_id"] = 6
    data, summary, _ = report(tmp_path, content)
    assert data["image-0"]["sides"][0]["parents"] == [-1, -1, 1, 1, 2, 4]
    assert data["image-0"]["sides"][0]["byCoverage"]
    assert "parent_ids are not used" in summary.problems[0]


def test_an_unknown_parent_gives_a_whole(tmp_path):
    content = coco({1: "a.png"})
    content["annotations"][2]["parent_id"] = 99
    data, summary, _ = report(tmp_path, content)
    assert data["image-0"]["sides"][0]["parents"] == [-1, -1, -1, 1, 2, 4]
    assert "names the parent 99" in summary.problems[0]


def test_crowds_are_skipped(tmp_path):
    content = coco({1: "a.png"})
    content["annotations"][0]["iscrowd"] = 1
    data, summary, _ = report(tmp_path, content)
    assert summary.complete and summary.crowds == 1
    assert data["image-0"]["sides"][0]["parents"] == [-1, -1, -1, 1, 3]


def test_missing_sizes_are_read_from_the_photo(tmp_path):
    content = coco({1: "a.png", 2: "gone.png"})
    for image in content["images"]:
        del image["height"], image["width"]
    data, summary, _ = report(tmp_path, content)
    assert summary.images == 1 and (data["image-0"]["height"], data["image-0"]["width"]) == SIZE
    assert "'gone.png' is skipped" in summary.problems[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"annotations": []}, "no list 'images'"),
        ({"images": []}, "no images"),
        ([], "result list"),
        ({"images": [{"file_name": "a"}]}, "'a' has no valid 'id'"),
        ({"images": [{"id": 1}, {"id": 1}]}, "two images have the id 1"),
        ({"images": [{"id": 1}], "annotations": {"a": 1}}, "not a list"),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_label_file(write_json(tmp_path / "x.json", content))


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sohes_d2.report.build.pack_photo", fails)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path, coco({1: "a.png"}))
    assert not list(tmp_path.glob("report*"))


# Two files


def test_masks_are_matched_one_to_one_best_first():
    masks = [box_mask(0, 0, 10, 10), box_mask(0, 0, 10, 12), box_mask(40, 40, 50, 50)]
    others = [box_mask(0, 0, 10, 11), box_mask(0, 0, 10, 12), box_mask(40, 40, 50, 44)]
    pairs = match_masks(encode_masks(masks), encode_masks(others))
    assert [(i, j) for i, j, _ in pairs] == [(1, 1), (0, 0)]
    assert [iou for _, _, iou in pairs] == pytest.approx([1.0, 10 / 11])
    # Exactly one half still counts.
    assert match_masks(encode_masks([box_mask(0, 0, 10, 10)]), encode_masks([box_mask(0, 0, 10, 5)])) == [(0, 0, 0.5)]
    assert match_masks([], encode_masks(masks)) == []


def test_two_files_are_linked_by_name_not_by_id(tmp_path):
    ours = coco({1: "val/a.png", 2: "val/b.png"})
    theirs = coco({2: "a.png", 1: "c.png"}, hierarchy=False)
    theirs["annotations"] = [a for a in theirs["annotations"] if a["id"] != 3]
    data, summary, _ = report(tmp_path, ours, ("val/a.png", "val/b.png"), theirs)
    first, second = data["image-0"], data["image-1"]
    assert second["sides"][1] is None and summary.unmatched_images == 1
    left, right = first["sides"]
    pairs = {(left["ids"][i], right["ids"][j]) for i, j, _ in first["matches"]}
    assert pairs == {("1", "1"), ("2", "2"), ("4", "4"), ("5", "5"), ("6", "6")} and summary.matched == 5
    assert summary.complete


def test_a_result_list_is_matched_by_id(tmp_path):
    results = [result(box_mask(*BOXES[2]), 2), result(box_mask(0, 0, 5, 5), 2), result(box_mask(0, 0, 5, 5), 9)]
    data, summary, _ = report(tmp_path, coco({1: "a.png", 2: "b.png"}), ("a.png", "b.png"), results)
    assert data["image-0"]["sides"][1] is None
    assert summary.masks == [12, 2] and summary.matched == 1 and data["image-1"]["matches"] == [[2, 0, 1.0]]


def test_names_that_occur_twice_do_not_match_by_their_last_part(tmp_path):
    one = read_label_file(write_json(tmp_path / "a.json", coco({1: "x/a.png", 2: "y/a.png"})))
    two = read_label_file(write_json(tmp_path / "b.json", coco({5: "y/a.png", 6: "z/a.png"})))
    assert match_images(one, two) == {1: None, 2: 5}


def test_files_without_a_common_image_are_refused(tmp_path):
    with pytest.raises(InputError, match="no image in common"):
        report(tmp_path, coco({1: "a.png"}), compare=coco({1: "b.png"}))


def test_another_size_of_the_image_is_a_problem_of_the_second_file(tmp_path):
    other = coco({1: "a.png"})
    other["images"][0]["height"] = 61
    data, summary, _ = report(tmp_path, coco({1: "a.png"}), compare=other)
    assert data["image-0"]["sides"][1] is None and "at 61 x 90 instead of 60 x 90" in summary.problems[0]


# Metrics


def test_metrics_are_grouped(tmp_path):
    path = write_json(
        tmp_path / "m.json",
        {"segm/AR@1000": 12.5, "segm/AP": None, "forest": {"links": 3}, "forest/depth": [[1, 2], [3, 4]], "note": "x"},
    )
    assert read_metrics(path) == [
        {"title": "segm", "rows": [["AR@1000", 12.5], ["AP", None]], "matrices": []},
        {"title": "forest", "rows": [["links", 3]], "matrices": [["depth", [[1, 2], [3, 4]]]]},
    ]
    for content in ([1], {"a": "b"}):
        with pytest.raises(InputError):
            read_metrics(write_json(path, content))


# Safety


HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)>\u2028.png"


def test_names_from_files_never_become_markup(tmp_path):
    content = coco({1: HOSTILE})
    content["categories"] = [{"id": 1, "name": HOSTILE}, {"id": 2, "name": "b"}]
    content["annotations"][0]["source"] = HOSTILE
    data, _, page = report(tmp_path, content, photos=(), title=HOSTILE)
    text = page.read_text()
    assert "alert(1)</script>" not in text and "<img src=x" not in text
    assert f"<title>{html.escape(HOSTILE)}</title>" in text
    assert data["index"]["images"][0]["name"] == HOSTILE
    assert data["image-0"]["sides"][0]["labels"][0] == HOSTILE
    element = data_element("x", {"a": "<\u2028é"})
    content = element.partition(">")[2].rpartition("</script>")[0]
    assert json.loads(content) == {"a": "<\u2028é"} and element.isascii() and "<" not in content


def test_the_page_allows_only_its_own_script_and_style_and_no_network(tmp_path):
    _, _, page = report(tmp_path, coco({1: "a.png"}))
    text = page.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert not re.search(r"//[a-z0-9-]+\.[a-z]", text)
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "eval(" not in script
    assert 'style="' not in text  # the policy would block it


def test_camera_metadata_is_removed(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    path = tmp_path / "images" / "a.jpg"
    path.parent.mkdir()
    Image.new("RGB", SIZE[::-1]).save(path, exif=exif)
    assert b"SecretCamera" in path.read_bytes()
    data, _, _ = report(tmp_path, coco({1: "a.jpg"}), photos=())
    for address in (data["image-0"]["photo"], data["index"]["images"][0]["thumbnail"]):
        assert b"SecretCamera" not in base64.b64decode(address.split(",")[1])


def test_every_asset_is_installed_and_used(tmp_path):
    assets = {path.name for path in (Path(build.__file__).parent / "assets").iterdir()}
    assert assets == {*build.SCRIPTS, "page.html", "style.css"}
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    assert '"sohes_d2.report": ["assets/*"]' in setup


def test_a_progress_bar_is_shown_only_in_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(build, "BAR_DELAY", 0.0)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        report(tmp_path, coco({1: "a.png"}))
        assert ("0/1" in stream.getvalue()) == shown


def test_the_page_opens_on_the_selection_unless_told_otherwise(tmp_path):
    data, _, _ = report(tmp_path, coco({1: "a.png"}))
    assert data["index"]["entities"] == 20 and 20 in data["index"]["entityCounts"]
