"""Label files, their journal, index, lazy reader and merging."""

import errno
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.errors import CorruptFileError, FolderBusyError, InputError
from sohes_d2.labels import shards
from sohes_d2.labels.index import check_label_file, index_path, load_index, read_info, save_index, scan_label_file
from sohes_d2.labels.journal import ShardJournal
from sohes_d2.labels.reader import read_label_file
from sohes_d2.labels.shards import (
    ShardedDataset,
    merge_shards,
    missing_shards,
    read_skipped,
    shard_name,
    write_folder_index,
)
from sohes_d2.labels.writer import dump_line, image_record, write_label_file

INFO = {"config": {"theta": 0.1}}


def annotation(image_id, k, area=100, depth=0):
    return {"id": image_id * 10_000 + k, "image_id": image_id, "area": area, "depth": depth, "note": 'a "quoted\\ \t'}


def result(image_id, masks):
    lines = [dump_line(image_record(image_id, f"ä {image_id}\n.jpg", 20, 30))]
    lines += [dump_line(annotation(image_id, k + 1, 10 ** (k + 1), k)) for k in range(masks)]
    return image_id, False, lines


def skipped(image_id):
    return image_id, True, [dump_line({"id": image_id, "file_name": "x", "step": "read", "reason": "empty"})]


def write_shard(folder, number, results, info=INFO, index=True):
    """Write a shard through its journal, as a run does."""
    folder.mkdir(exist_ok=True)
    journal = ShardJournal(str(folder / f"shard_{number:05d}.partial.jsonl"))
    journal.append(0, results)
    path = str(folder / shard_name(number))
    write_label_file(path, info, journal.blocks([image_id for image_id, *_ in results]))
    journal.remove()
    if index:
        save_index(path, scan_label_file(path))
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "labels"
    write_shard(folder, 0, [result(1, 2), skipped(2), result(3, 0), result(4, 1)])
    write_shard(folder, 1, [skipped(5)])
    write_shard(folder, 2, [result(6, 0), result(7, 3)])
    write_folder_index(str(folder), {"images": 7, "images_per_shard": 4, "shards": 3})
    return folder


def test_numbers_are_rounded_and_nan_is_refused():
    assert (
        dump_line({"a": 0.12345678, "b": [1.0, 2], "c": "ä\udcff"})
        == b'{"a":0.123457,"b":[1.0,2],"c":"\\u00e4\\udcff"}'
    )
    with pytest.raises(ValueError):
        dump_line({"a": float("nan")})


def test_a_label_file_is_plain_coco(folder):
    content = json.loads((folder / shard_name(0)).read_text())
    assert content["info"] == INFO and content["categories"][0]["name"] == "entity"
    assert [image["id"] for image in content["images"]] == [1, 3, 4]
    assert [a["id"] for a in content["annotations"]] == [10001, 10002, 40001]
    assert content["skipped"] == [{"id": 2, "file_name": "x", "step": "read", "reason": "empty"}]
    assert read_info(str(folder / shard_name(0))) == INFO
    assert json.loads((folder / shard_name(1)).read_text())["annotations"] == []
    assert json.loads((folder / "index.json").read_text())["shards"][2] == {
        "file": "shard_00002.json",
        "images": 2,
        "annotations": 3,
        "skipped": 0,
    }


def test_index_finds_records_and_counts(folder):
    path = folder / shard_name(0)
    index = load_index(str(path))
    data = path.read_bytes()
    assert index.rows["image_id"].tolist() == [1, 3, 4] and index.rows["count"].tolist() == [2, 0, 1]
    assert index.rows["height"].tolist() == [20] * 3 and index.rows["width"].tolist() == [30] * 3
    row = index.rows[2]
    start = int(row["annotations_offset"])
    assert json.loads(data[start : start + int(row["annotations_length"])]) == annotation(4, 1, 10)
    assert index.stats == {
        "annotations": 3,
        "skipped": 1,
        "depth": {"0": 2, "1": 1},
        "size": {"small": 3, "medium": 0, "large": 0},
        "relative_size": {"<0.1%": 0, "0.1-1%": 0, "1-10%": 2, ">=10%": 1},
    }


def test_a_missing_stale_or_damaged_index_is_computed_from_the_file(folder):
    path = str(folder / shard_name(2))
    saved = open(index_path(path), "rb").read()
    for damage in (None, b"", b"PK\x03\x04 not a zip", saved[:100]):
        os.unlink(index_path(path))
        if damage is not None:
            with open(index_path(path), "wb") as file:
                file.write(damage)
        index = load_index(path)
        assert index.rows["image_id"].tolist() == [6, 7]
        save_index(path, index)
        assert open(index_path(path), "rb").read() == saved
    write_shard(folder, 2, [result(6, 1), result(7, 3)], index=False)  # the index beside it is stale now
    assert load_index(path).rows["count"].tolist() == [1, 3]


@pytest.mark.parametrize("info", [INFO, {"config": {"theta": 0.2}}])
def test_an_index_is_stale_for_another_file_of_the_same_length(folder, info):
    path = str(folder / shard_name(2))
    size = os.path.getsize(path)
    results = [result(6, 0), result(7, 3)] if info != INFO else [result(6, 3), result(7, 0)]
    write_shard(folder, 2, results, info=info, index=False)
    assert os.path.getsize(path) == size
    index, scanned = load_index(path), scan_label_file(path)
    assert np.array_equal(index.rows, scanned.rows) and index.stats == scanned.stats


def test_a_file_changed_while_open_is_detected(folder):
    for results in ([result(7, 0), result(6, 3)], [result(6, 3), result(7, 0)], [result(666, 3), result(777, 0)]):
        write_shard(folder, 2, [result(6, 0), result(7, 3)])
        dataset = ShardedDataset(str(folder))
        write_shard(folder, 2, results)
        with pytest.raises(CorruptFileError, match="open it again|shorter"):
            _read_all(dataset)


def test_truncated_or_foreign_files_are_refused(folder):
    path = folder / shard_name(0)
    data = path.read_bytes()
    os.unlink(index_path(str(path)))
    for length in (0, 10, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptFileError):
            load_index(str(path))
    for head in (b"\xff\xfe", b"\x1f\x8b", b"<", b"\x00"):  # first bytes of other formats
        path.write_bytes(head + data[len(head) :])
        with pytest.raises(CorruptFileError):
            load_index(str(path))
    path.write_text(json.dumps(json.loads(data)))
    with pytest.raises(CorruptFileError):
        load_index(str(path))
    with pytest.raises(CorruptFileError):
        read_info(str(path))


def test_dataset_reads_lazily_and_in_order(folder):
    dataset = ShardedDataset(str(folder))
    assert len(dataset) == 5
    assert [item["image"]["id"] for item in dataset] == [1, 3, 4, 6, 7]
    assert [len(item["annotations"]) for item in dataset] == [2, 0, 1, 0, 3]
    assert dataset[-1] == dataset[4] and dataset[np.int64(4)]["annotations"][2] == annotation(7, 3, 1000, 2)
    assert dataset[0]["image"]["file_name"] == "ä 1\n.jpg"
    for index in (5, -6):
        with pytest.raises(IndexError):
            dataset[index]
    assert pickle.loads(pickle.dumps(dataset))[2] == dataset[2]


def _read_all(dataset):
    return [dataset[i]["image"]["id"] for i in range(len(dataset))]


def test_merging_copies_every_record(folder, tmp_path):
    merged = tmp_path / "merged.json"
    merge_shards(str(folder), str(merged))
    whole = [result(1, 2), skipped(2), result(3, 0), result(4, 1), skipped(5), result(6, 0), result(7, 3)]
    assert merged.read_bytes() == open(write_shard(tmp_path / "one", 0, whole), "rb").read()
    assert [record["id"] for record in read_skipped(str(merged))] == [2, 5]


def test_merging_saves_the_index_that_a_scan_would_give(folder, tmp_path, monkeypatch):
    merged = str(tmp_path / "merged.json")
    with open(index_path(merged), "wb") as file:
        file.write(b"of an older file")
    merge_shards(str(folder), merged)
    scanned = scan_label_file(merged)
    monkeypatch.setattr("sohes_d2.labels.index.scan_label_file", None)  # must not be called
    index = load_index(merged)
    assert np.array_equal(index.rows, scanned.rows) and np.array_equal(index.sections, scanned.sections)
    assert index.stats == scanned.stats and index.file_bytes == scanned.file_bytes == os.path.getsize(merged)
    assert [list(index.stats[name]) for name in ("depth", "size")] == [["0", "1", "2"], ["small", "medium", "large"]]
    dataset, shards = ShardedDataset(merged), ShardedDataset(str(folder))
    assert list(dataset) == list(shards)


def test_merging_again_replaces_the_index(folder, tmp_path):
    merged = str(tmp_path / "merged.json")
    merge_shards(str(folder), merged)
    write_shard(folder, 2, [result(6, 2), result(7, 1)])
    merge_shards(str(folder), merged)
    assert load_index(merged).rows["count"].tolist() == [2, 0, 1, 2, 1]
    (folder / shard_name(1)).unlink()
    with pytest.raises(InputError):
        merge_shards(str(folder), merged)
    assert load_index(merged).rows["count"].tolist() == [2, 0, 1, 2, 1]  # file and index are unchanged


def test_an_older_file_and_its_index_survive_a_full_disk(folder, tmp_path, monkeypatch):
    merged = str(tmp_path / "labels.json")
    merge_shards(str(folder), merged)
    before = [Path(path).read_bytes() for path in (merged, index_path(merged))]
    write_shard(folder, 1, [result(5, 1)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(shards, "copy_range", full)
        with pytest.raises(OSError, match="No space left"):
            merge_shards(str(folder), merged)
    assert [Path(path).read_bytes() for path in (merged, index_path(merged))] == before

    monkeypatch.setattr(shards, "save_index", lambda *_: None)  # killed between the file and its index
    merge_shards(str(folder), merged)
    assert Path(index_path(merged)).read_bytes() == before[1]
    assert load_index(merged).rows["image_id"].tolist() == [1, 3, 4, 5, 6, 7]
    assert load_index(merged).stats == scan_label_file(merged).stats


def test_shards_with_an_image_in_common_are_not_merged(folder, tmp_path):
    write_shard(folder, 1, [result(4, 1)])
    with pytest.raises(InputError, match="in common"):
        merge_shards(str(folder), str(tmp_path / "merged.json"))
    assert not list(tmp_path.glob("merged*"))


def test_incomplete_and_mixed_folders_are_refused(folder, tmp_path):
    (folder / shard_name(1)).unlink()
    assert missing_shards(str(folder)) == [1]
    with pytest.raises(InputError, match="shard_00001.json"):
        merge_shards(str(folder), str(tmp_path / "merged.json"))
    with pytest.raises(InputError, match="lacks 1"):
        ShardedDataset(str(folder))
    assert len(ShardedDataset(str(folder), allow_incomplete=True)) == 5
    merge_shards(str(folder), str(tmp_path / "merged.json"), allow_incomplete=True)
    write_shard(folder, 1, [result(5, 1)], info={"config": {"theta": 0.2}})
    with pytest.raises(InputError, match="another configuration"):
        merge_shards(str(folder), str(tmp_path / "other.json"))
    assert not list(tmp_path.glob("other*"))
    with pytest.raises(InputError, match="no shard"):
        ShardedDataset(str(tmp_path / "labels" / ".."))


def test_a_truncated_journal_keeps_whole_units(tmp_path):
    path = str(tmp_path / "shard_00000.partial.jsonl")
    journal = ShardJournal(path)
    journal.append(0, [result(1, 1), skipped(2)])
    first = os.path.getsize(path)
    journal.append(1, [result(3, 2), result(4, 0)])
    journal.close()
    data = open(path, "rb").read()
    for length in range(first, len(data) + 1):
        with open(path, "wb") as file:
            file.write(data[:length])
        journal = ShardJournal(path)
        whole = length == len(data)
        assert set(journal.done) == ({1, 2, 3, 4} if whole else {1, 2})
        journal.append(1, [result(3, 2), result(4, 0)] if not whole else [result(5, 0)])
        if not whole:
            assert open(path, "rb").read() == data
        assert b"".join(map(b"".join, journal.blocks([3, 1, 2, 4])["annotations"])).count(b'"id"') == 3
        journal.close()
    with open(path, "wb") as file:  # blocks that were never written read as zeros after a power cut
        file.write(data[:first] + bytes(len(data) - first - 1) + b"\n")
    journal = ShardJournal(path)
    assert set(journal.done) == {1, 2} and os.path.getsize(path) == first
    with pytest.raises(FolderBusyError, match="another process"):
        ShardJournal(path)
    journal.remove()
    assert not os.path.exists(path)


def test_a_journal_with_a_flipped_bit_keeps_the_other_units(tmp_path):
    path = str(tmp_path / "shard_00000.partial.jsonl")
    journal = ShardJournal(path)
    units = [[result(1, 1), skipped(2)], [result(3, 2), result(4, 0)], [result(5, 1)]]
    for number, unit in enumerate(units):
        journal.append(number, unit)
    records = {i: [*journal.blocks([i])["images"], *journal.blocks([i])["annotations"]] for i in (1, 3, 4, 5)}
    journal.close()
    data = open(path, "rb").read()
    for place in range(len(data)):
        with open(path, "wb") as file:
            file.write(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        journal = ShardJournal(path)
        done = set(journal.done)
        assert done in ({1, 2, 3, 4}, {1, 2, 5}, {3, 4, 5}, {5}, {1, 2})  # a commit line also affects the next unit
        for number, unit in enumerate(units):
            if not {image_id for image_id, *_ in unit} <= done:
                journal.append(number, unit)
        assert set(journal.done) == {1, 2, 3, 4, 5}
        assert list(journal.blocks([1, 2, 3])["skipped"]) == [skipped(2)[2]]
        for i, blocks in records.items():
            assert [*journal.blocks([i])["images"], *journal.blocks([i])["annotations"]] == blocks
        journal.close()
        journal = ShardJournal(path)  # damaged lines stay in the file and are ignored
        assert set(journal.done) == {1, 2, 3, 4, 5}
        journal.close()


@pytest.mark.parametrize("indexed", [True, False])
def test_every_flipped_bit_of_a_shard_is_detected(folder, tmp_path, indexed):
    path = folder / shard_name(0)
    good = path.read_bytes()
    if not indexed:
        os.unlink(index_path(str(path)))
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CorruptFileError, match="shard_00000.json"):
            merge_shards(str(folder), str(tmp_path / "merged.json"))
        assert not list(tmp_path.glob("merged*"))
        if not indexed:
            with pytest.raises(CorruptFileError, match="shard_00000.json"):
                ShardedDataset(str(folder))
        if good[place : place + 1] not in (b"\n", b'"') and b'"crc32"' not in good[place - 10 : place + 10]:
            with pytest.raises(InputError):
                read_label_file(path)


def test_a_damaged_record_is_detected_on_access(folder, monkeypatch):
    """The index has checksums of records, so that the rest of the file need not be read."""
    monkeypatch.setattr("sohes_d2.labels.index._CHECKED_BYTES", 16)
    path = folder / shard_name(0)
    save_index(str(path), scan_label_file(str(path)))
    place = int(ShardedDataset(str(folder)).rows[2]["annotations_offset"]) + 9
    good = path.read_bytes()
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    dataset = ShardedDataset(str(folder))
    assert dataset[0]["image"]["id"] == 1
    with pytest.raises(CorruptFileError, match="shard_00000.json"):
        dataset[2]


@pytest.mark.parametrize("end", [b"\n", b" ", b"\n" * 100, b" " * 100 + b"\n"])
def test_bytes_after_the_checksum_are_damage(folder, end):
    path = folder / shard_name(0)
    path.write_bytes(path.read_bytes() + end)
    with pytest.raises(CorruptFileError, match="shard_00000.json"):
        check_label_file(str(path))


def test_an_index_with_an_entry_that_is_no_array_is_computed_again(folder):
    """For an npz entry with damaged first bytes, numpy returns its bytes instead of an array."""
    path = str(folder / shard_name(0))
    entries = dict(np.load(index_path(path)).items())
    with zipfile.ZipFile(index_path(path), "w") as archive:
        for name, value in entries.items():
            content = io.BytesIO()
            np.save(content, value)
            archive.writestr(f"{name}.npy", b"?" + content.getvalue()[1:] if name == "sections" else content.getvalue())
    assert isinstance(np.load(index_path(path))["sections"], bytes)
    assert np.array_equal(load_index(path).sections, scan_label_file(path).sections)


def test_files_of_older_versions_have_no_checksum_and_are_read(folder):
    path = folder / shard_name(0)
    data = path.read_bytes()
    old = data[: data.rindex(b',\n"crc32"')] + b"}\n"
    path.write_bytes(old)
    os.unlink(index_path(str(path)))
    check_label_file(str(path))
    assert load_index(str(path)).rows["image_id"].tolist() == [1, 3, 4]
    assert len(read_label_file(path).annotations) == 3


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 0}, {"indent": 2}])
def test_a_file_changed_by_a_script_is_read(folder, tmp_path, style):
    content = json.loads((folder / shard_name(0)).read_text())
    content["annotations"].pop()
    (tmp_path / "changed.json").write_text(json.dumps(content, **style))
    assert len(read_label_file(tmp_path / "changed.json").annotations) == 2


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_checksum_does_not_depend_on_how_a_file_is_read(folder, monkeypatch, chunk):
    monkeypatch.setattr("sohes_d2.labels.scanner._CHUNK", chunk)
    path = folder / shard_name(0)
    assert len(read_label_file(path).annotations) == 3
    path.write_bytes(path.read_bytes().replace(b'"area":100,', b'"area":101,', 1))
    with pytest.raises(CorruptFileError, match="if it was edited"):
        read_label_file(path)
