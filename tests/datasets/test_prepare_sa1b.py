"""SA-1B: the test split and the training lists, on a tiny copy of two archives."""

from __future__ import annotations

import pytest

SIZE = (10, 12)


@pytest.fixture
def script(load_script, monkeypatch):
    """The script with a test split of 4 of the images up to 20."""
    module = load_script("prepare_sa1b")
    monkeypatch.setattr(module, "TEST_SIZE", 4)
    monkeypatch.setattr(module, "LAST_TEST_NUMBER", 20)
    return module


@pytest.fixture
def sa1b(tmp_path, write_json, rectangle, rle):
    """Images 1..20 in one archive and 21..50 in another, each of two masks, and files that are not of SA-1B."""
    for number in range(1, 51):
        folder = tmp_path / "sa1b" / f"sa_{0 if number <= 20 else 1:06d}"
        annotations = [
            {"id": 10 * number + k, "area": 9 * k, "bbox": [0, 0, 3, 3 * k], "predicted_iou": 1.02}
            | {"segmentation": rle(rectangle(SIZE, 0, 0, 3 * k, 3))}
            for k in (1, 2)
        ]
        image = {"image_id": number, "height": SIZE[0], "width": SIZE[1], "file_name": f"sa_{number}.jpg"}
        write_json(folder / f"sa_{number}.json", {"image": image, "annotations": annotations})
        (folder / f"sa_{number}.jpg").touch()
    (tmp_path / "sa1b" / "sa_99.jpg").touch()  # without a json
    (tmp_path / "sa1b" / "notes.jpg").touch()
    return tmp_path


def test_the_test_split_is_fixed_and_converted(script, sa1b, read_labels, capsys):
    assert script.main(["--root", str(sa1b), "--test"]) == 0
    labels = read_labels(sa1b / "entities" / "sa1b_test_1000.json")
    numbers = [i["id"] for i in labels["images"]]
    # the four smallest of `printf sa_N | sha256sum` for N = 1 ... 20
    assert numbers == [2, 4, 7, 16]
    assert labels["images"][0]["file_name"] == f"sa_000000/sa_{numbers[0]}.jpg"
    assert [a["area"] for a in labels["annotations"][:2]] == [9, 18]
    assert [a["source_id"] for a in labels["annotations"][:2]] == [10 * numbers[0] + 1, 10 * numbers[0] + 2]
    listed = (sa1b / "entities" / "sa1b_test_1000.txt").read_text().split()
    assert listed == [i["file_name"] for i in labels["images"]]
    assert "sha256 of the numbers of the 4 test images" in capsys.readouterr().out


def test_training_lists_are_nested_and_have_no_test_image(script, sa1b):
    assert script.main(["--root", str(sa1b), "--train", "5", "--train", "30"]) == 0
    small = (sa1b / "entities" / "sa1b_train_5.txt").read_text().split()
    large = (sa1b / "entities" / "sa1b_train_30.txt").read_text().split()
    assert large[:5] == small and len(set(large)) == 30
    assert {script.number(name) for name in large} == set(range(21, 51))


def test_too_few_images_are_an_error(script, sa1b, capsys):
    assert script.main(["--root", str(sa1b), "--train", "31"]) == 2
    assert "31 training images are requested, but only 30 exist" in capsys.readouterr().err
    for number in range(1, 18):
        (sa1b / "sa1b" / "sa_000000" / f"sa_{number}.json").unlink()
    assert script.main(["--root", str(sa1b), "--test"]) == 2
    message = capsys.readouterr().err
    assert "only 3 of them exist" in message and "sa_000000.tar" in message


def test_a_damaged_json_is_skipped_with_its_reason(script, sa1b, read_labels):
    names = script.test_split(script.find_images(str(sa1b / "sa1b")))
    (sa1b / "sa1b" / names[1]).with_suffix(".json").write_text("{")
    assert script.main(["--root", str(sa1b), "--test"]) == 3
    labels = read_labels(sa1b / "entities" / "sa1b_test_1000.json")
    assert len(labels["images"]) == 3 and "is not valid json" in labels["skipped"][0]["reason"]


def test_nothing_to_do_is_reported(script):
    with pytest.raises(SystemExit):
        script.main([])
