"""Checkpoints: reading, refused files, and the state after a kill."""

import argparse
import logging
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sohes_d2.errors import WeightsError
from sohes_d2.weights import read_weights
from sohes_d2.weights.checkpoint import SOHESCheckpointer
from sohes_d2.weights.layouts import current_names


class Predictor(nn.Module):
    """Has the parameter names of Mask2Former's decoder."""

    def __init__(self, classes=1, queries=5):
        super().__init__()
        self.query_feat = nn.Embedding(queries, 4)
        self.class_embed = nn.Linear(4, classes + 1)
        self.decoder_norm = nn.LayerNorm(4)


class Model(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = Predictor(**sizes)


NORM = "sem_seg_head.predictor.decoder_norm.weight"


def weights(seed=0, **sizes):
    torch.manual_seed(seed)
    return {key: torch.randn_like(value) for key, value in Model(**sizes).state_dict().items()}


def loaded(path, **sizes):
    model = Model(**sizes)
    SOHESCheckpointer(model).load(str(path))
    return model.state_dict()


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_safetensors(tmp_path):
    save_file(weights(), tmp_path / "w.safetensors")
    assert_same(loaded(tmp_path / "w.safetensors"), weights())


@pytest.mark.parametrize("wrap", ["model", "state_dict", None])
def test_torch_files_with_any_wrapping(tmp_path, wrap):
    torch.save({wrap: weights()} if wrap else weights(), tmp_path / "w.pth")
    assert_same(loaded(tmp_path / "w.pth"), weights())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_pickles_of_model_zoos(tmp_path, protocol, as_tensors):
    """Arrays as published by Detectron2, tensors as written by Mask2Former's converter for Swin."""
    values = OrderedDict((key, value if as_tensors else value.numpy()) for key, value in weights().items())
    content = {"model": values, "__author__": "somebody", "scale": np.float64(2.0), "matching_heuristics": False}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert_same(loaded(tmp_path / "w.pkl"), weights())


def test_arrays_of_older_numpy_are_found_under_their_old_names(tmp_path):
    old = pickle.dumps({"model": {"a": np.arange(3.0)}}, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "w.pkl").write_bytes(old)
    assert read_weights(str(tmp_path / "w.pkl"))["model"]["a"].tolist() == [0, 1, 2]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_code_in_a_file_is_not_run(tmp_path, suffix):
    content = {"model": weights(), "extra": Evil(str(tmp_path / "ran"))}
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(pickle.dumps(content)) if suffix == "pkl" else torch.save(content, path)
    with pytest.raises(
        WeightsError, match=r"would run code stored in it \(it asks for posix\.mkdir\), so it is refused"
    ):
        loaded(path)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_in_a_pickle_cannot_smuggle_code(tmp_path):
    class Smuggler:
        def __reduce__(self):
            inner = tmp_path / "inner.pth"
            torch.save(Evil(str(tmp_path / "ran")), inner)
            return torch.storage._load_from_bytes, (inner.read_bytes(),)

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": Smuggler()}}))
    with pytest.raises(WeightsError):
        loaded(tmp_path / "w.pkl")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_checkpoints_are_reported(tmp_path):
    with pytest.raises(WeightsError, match="none.pth' does not exist"):
        loaded(tmp_path / "none.pth")
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=1.0)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="has no model"):
        loaded(tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": weights()})[:100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        loaded(tmp_path / "w.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(WeightsError, match="has no model"):
        loaded(tmp_path / "list.pkl")


def test_mismatched_tensors_are_logged_and_the_rest_is_loaded(tmp_path, caplog):
    """A published Mask2Former: other classes and queries, a module that we lack, and none of our additions."""
    published = weights(classes=80, queries=100)
    published["sem_seg_head.predictor.static_query.weight"] = torch.zeros(3)
    del published["sem_seg_head.predictor.decoder_norm.bias"]
    torch.save({"model": published}, tmp_path / "w.pth")
    torch.manual_seed(1)
    model = Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        SOHESCheckpointer(model).load(str(tmp_path / "w.pth"))
    after = model.state_dict()
    assert torch.equal(after[NORM], published[NORM])
    for name in ("class_embed.weight", "class_embed.bias", "query_feat.weight", "decoder_norm.bias"):
        assert torch.equal(after[f"sem_seg_head.predictor.{name}"], before[f"sem_seg_head.predictor.{name}"])
    assert "class_embed.weight' to the model due to incompatible shapes: (81, 4)" in caplog.text
    assert "query_feat.weight' to the model due to incompatible shapes: (100, 4)" in caplog.text
    assert "not found in the checkpoint" in caplog.text
    assert "decoder_norm.bias" in caplog.text
    assert "static_query" in caplog.text


def test_the_limit_of_missing_tensors(tmp_path):
    """Four of five tensors of the head do not match; a part without any tensors in the file may be allowed to lack."""
    published = weights(classes=80, queries=100)
    del published["sem_seg_head.predictor.decoder_norm.bias"]
    torch.save({"model": published}, tmp_path / "w.pth")

    def load(max_unmatched, extra_part=False, **options):
        model = Model()
        if extra_part:
            model.backbone = nn.Linear(2, 2)
        SOHESCheckpointer(model, max_unmatched=max_unmatched, **options).load(str(tmp_path / "w.pth"))

    unmatched = 4 / 5  # class_embed.weight and .bias, query_feat.weight, decoder_norm.bias of five
    load(unmatched)
    with pytest.raises(WeightsError, match=r"4 of its 5 tensors.*MODEL.MAX_UNMATCHED allows 79%.*is \(81"):
        load(unmatched - 0.01)
    with pytest.raises(WeightsError, match="6 of its 7 tensors"):
        load(unmatched, extra_part=True)
    load(unmatched, extra_part=True, parts_may_lack=True)
    with pytest.raises(WeightsError, match="4 of its 5 tensors are missing:"):
        load(0.0, extra_part=True, parts_may_lack=True)


class Counter:
    """A checkpointable object."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count, "momentum": {0: torch.full((2,), float(self.count))}}

    def load_state_dict(self, state):
        self.count = state["count"]
        assert state["momentum"][0].tolist() == [self.count] * 2


def test_a_round_trip_with_checkpointables(tmp_path):
    model, counter = Model(), Counter(3)
    SOHESCheckpointer(model, str(tmp_path), counter=counter).save("model_0000003", iteration=3)
    other, other_counter = Model(), Counter()
    checkpointer = SOHESCheckpointer(other, str(tmp_path), counter=other_counter)
    extra = checkpointer.resume_or_load("", resume=True)
    assert extra["iteration"] == 3
    assert other_counter.count == 3
    assert_same(other.state_dict(), model.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]
    assert checkpointer.get_all_checkpoint_files() == [str(tmp_path / "model_0000003.pth")]


def test_detectron2s_own_checkpoints_are_resumed(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    model = Model()
    DetectionCheckpointer(model, str(tmp_path), counter=Counter(5)).save("model_0000005", iteration=5)
    counter = Counter()
    other = Model()
    assert SOHESCheckpointer(other, str(tmp_path), counter=counter).resume_or_load("")["iteration"] == 5
    assert counter.count == 5
    assert_same(other.state_dict(), model.state_dict())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process in the middle of writing")
def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    model = Model()
    checkpointer = SOHESCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def half(content, file):
        file.write(b"PK half a file")
        file.flush()
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(torch, "save", half)
        checkpointer.save("model_0000001")  # of the same name
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    other = Model()
    resumed = SOHESCheckpointer(other, str(tmp_path))
    resumed.resume_or_load("", resume=True)
    assert_same(other.state_dict(), before)
    assert resumed.get_all_checkpoint_files() == [str(tmp_path / "model_0000001.pth")]
    resumed.save("model_0000001")  # reuses the temporary file
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]


def test_a_missing_last_checkpoint_is_reported(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(WeightsError, match="train without --resume"):
        SOHESCheckpointer(Model(), str(tmp_path)).resume_or_load("", resume=True)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def flip_a_weight(path, model):
    flip(path, path.read_bytes().index(model.sem_seg_head.predictor.query_feat.weight.detach().numpy().tobytes()) + 5)


def test_a_flipped_bit_of_a_weight_is_detected(tmp_path):
    model = Model()
    SOHESCheckpointer(model, str(tmp_path)).save("model_0000001", iteration=1)
    flip_a_weight(tmp_path / "model_0000001.pth", model)
    with pytest.raises(WeightsError, match=r"model_0000001.pth': .*damaged.*the CRC32 of archive"):
        loaded(tmp_path / "model_0000001.pth")
    with pytest.raises(WeightsError, match="damaged"):  # no other checkpoint to resume from
        SOHESCheckpointer(Model(), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize("damage", ["weight", "name", "no text"])
def test_a_damaged_last_checkpoint_is_replaced_by_the_previous_one(tmp_path, caplog, damage):
    model, counter = Model(), Counter(1)
    checkpointer = SOHESCheckpointer(model, str(tmp_path), counter=counter)
    checkpointer.save("model_0000001", iteration=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.nn.init.zeros_(model.sem_seg_head.predictor.class_embed.weight)
    counter.count = 2
    checkpointer.save("model_0000002", iteration=2)
    checkpointer.save("model_good")  # not used for resuming
    checkpointer.tag_last_checkpoint("model_0000002.pth")
    if damage != "weight":
        flip(tmp_path / "model_good.pth", 60)
        (tmp_path / "model_0000002.pth").unlink()
    if damage == "no text":
        (tmp_path / "last_checkpoint").write_bytes(b"model_\xb0000002.pth")
    if damage == "weight":
        flip_a_weight(tmp_path / "model_0000002.pth", model)
    other, other_counter = Model(), Counter()
    with caplog.at_level(logging.WARNING):
        extra = SOHESCheckpointer(other, str(tmp_path), counter=other_counter).resume_or_load("", resume=True)
    assert (extra["iteration"], other_counter.count) == (1, 1)
    assert_same(other.state_dict(), before)
    assert "continues from" in caplog.text and "model_0000001.pth, because" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save({"model": {"student.weight": torch.ones(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"it has student.weight.*sohes export"):
        SOHESCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).load(str(tmp_path / "other.pth"))


def test_names_of_earlier_versions_are_converted():
    old = [
        "backbone.vit.trunk.pos_embed",
        "teacher.backbone.vit.trunk.norm.bias",
        "trunk.cls_token",
        "vit.x",
    ]
    new = ["backbone.vit.model.pos_embed", "teacher.backbone.vit.model.norm.bias", "vit.cls_token", "vit.x"]
    assert list(current_names({name: torch.zeros(1) for name in old})) == new
