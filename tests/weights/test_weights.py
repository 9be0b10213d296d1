"""Weights in every published layout give the same numbers in the model; others are refused with a remedy."""

from __future__ import annotations

import argparse
import codecs
import logging
import math
import os
import pickle
import random
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked, resample_abs_pos_embed

from sohes_d2 import weights as W
from sohes_d2.errors import WeightsError
from sohes_d2.weights import load_weights, read_weights, state_digest
from sohes_d2.weights.layouts import resampling_of, use_official_resampling

HUB_NAME = "test_vit.r160_in1k"  # timm's tiny ViT on the hub


def tiny_vit(seed: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=0, **kwargs).eval()


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def chunked(state: dict) -> dict:
    """The block names of an official DINOv2 training checkpoint: blocks.CHUNK.INDEX."""
    return {
        f"blocks.{int(key.split('.')[1]) // 3}.{key[len('blocks.') :]}" if key.startswith("blocks.") else key: value
        for key, value in state.items()
    }


LAYOUTS = {
    "timm": lambda good, bad: good,
    "model entry": lambda good, bad: {"model": good, "epoch": 3, "optimizer": {"state": {}}},
    "DataParallel": lambda good, bad: {"state_dict": prefixed("module.", good)},
    "compiled": lambda good, bad: prefixed("_orig_mod.", good),
    "DINO training": lambda good, bad: {
        "student": prefixed("module.backbone.", bad),
        "teacher": {**prefixed("backbone.", good), "head.mlp.0.weight": torch.ones(3, 3)},
        "epoch": 1,
        "args": argparse.Namespace(arch="vit_base", patch_size=8),
    },
    "DINOv2 teacher file": lambda good, bad: {
        "teacher": {**prefixed("backbone.", chunked(good)), "backbone.mask_token": torch.ones(1, 64)}
    },
    "DINOv2 training": lambda good, bad: {
        "model": {**prefixed("student.backbone.", chunked(bad)), **prefixed("teacher.backbone.", chunked(good))}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bits(layout, tmp_path):
    good, bad, model = tiny_vit(1), tiny_vit(2), tiny_vit(3)
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](good.state_dict(), bad.state_dict()), path)

    report = load_weights(model, str(path))

    x = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(model(x), good(x))
    assert report.digest == state_digest(good.state_dict())
    assert (report.origin, report.loaded, report.missing) == ("file:weights.pth", len(good.state_dict()), ())
    assert (report.layout == "timm") == (layout == "timm")


def test_safetensors_and_torch_files_have_one_digest(tmp_path):
    good = tiny_vit(1)
    save_file(good.state_dict(), str(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").rename(tmp_path / "no_suffix")
    torch.save(good.half().state_dict(), tmp_path / "half.pth")
    assert load_weights(tiny_vit(2), str(tmp_path / "no_suffix")).digest == state_digest(tiny_vit(1).state_dict())
    model = tiny_vit(2)
    load_weights(model, str(tmp_path / "half.pth"))
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.cls_token, good.cls_token.float())


def test_official_dinov2_with_registers(tmp_path):
    options = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
    good, model = tiny_vit(1, **options), tiny_vit(2, **options)
    state = good.state_dict()
    position = torch.randn(1, 1, 64)
    official = chunked({k: v for k, v in state.items() if k not in ("reg_token", "pos_embed")})
    official["register_tokens"] = state["reg_token"]
    official["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    official["mask_token"] = torch.zeros(1, 64)
    torch.save(official, tmp_path / "dinov2_reg4.pth")

    report = load_weights(model, str(tmp_path / "dinov2_reg4.pth"))

    expected = {**state, "cls_token": state["cls_token"] + position}
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert report.unexpected == ("mask_token",)
    for word in ("register_tokens", "chunked blocks", "class position"):
        assert word in report.layout


def test_official_dinov2_swiglu(tmp_path):
    good, model = tiny_vit(1, mlp_layer=SwiGLUPacked), tiny_vit(2, mlp_layer=SwiGLUPacked)
    names = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
    official = {}
    for key, value in good.state_dict().items():
        for timms, metas in names.items():
            key = key.replace(timms, metas)
        official[key] = value
    torch.save(official, tmp_path / "giant.pth")
    assert load_weights(model, str(tmp_path / "giant.pth")).missing == ()
    assert torch.equal(model.blocks[2].mlp.fc1.weight, good.blocks[2].mlp.fc1.weight)


def test_position_embedding_is_resampled_like_timm(tmp_path):
    small = tiny_vit(1, img_size=80)  # 5x5 patches and a class position
    torch.save(small.state_dict(), tmp_path / "small.pth")
    model = tiny_vit(2)
    report = load_weights(model, str(tmp_path / "small.pth"))
    expected = resample_abs_pos_embed(small.pos_embed, new_size=[10, 10], old_size=[5, 5], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, expected, rtol=0, atol=1e-6)
    assert "pos_embed 5x5 resampled to 10x10" in report.layout

    state = small.state_dict()
    state["pos_embed"] = state["pos_embed"][:, 1:]  # a file without a class position
    torch.save(state, tmp_path / "patches_only.pth")
    load_weights(model, str(tmp_path / "patches_only.pth"))
    torch.testing.assert_close(model.pos_embed[:, 1:], expected[:, 1:], rtol=0, atol=1e-6)
    assert torch.count_nonzero(model.pos_embed[:, 0]) == 0


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("vit_base_patch8_224.dino", "official"),
        ("vit_small_patch14_dinov2.lvd142m", "official"),
        ("vit_small_patch14_dinov2", "official"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "timm"),
        ("vit_base_patch16_224.augreg_in21k", "timm"),
        ("vit_base_patch16_224", "timm"),
    ],
)
def test_methods_of_resampling_positions(name, way):
    assert resampling_of(name) == way
    assert resampling_of(name, "timm") == "timm" and resampling_of(name, "official") == "official"
    with pytest.raises(ValueError, match="not one of auto, official, timm"):
        resampling_of(name, "bicubic")


@pytest.mark.parametrize("shape", [(7, 12), (20, 20), (10, 9)])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}])
def test_official_resampling_of_positions(shape, options):
    """Bicubic by (n + 0.1) / M, written out: weights of Keys' kernel with a = -0.75, clamped to the border."""

    def matrix(n, m):
        def kernel(x):
            x = abs(x)
            near = (1.25 * x - 2.25) * x * x + 1
            return near if x <= 1 else (((-0.75 * x + 3.75) * x - 6) * x + 3 if x < 2 else 0.0)

        rows = torch.zeros(n, m, dtype=torch.float64)
        for i in range(n):
            place = (i + 0.5) * m / (n + 0.1) - 0.5
            first = math.floor(place) - 1
            for j in range(first, first + 4):
                rows[i, min(max(j, 0), m - 1)] += kernel(place - j)
        return rows

    model = tiny_vit(1, dynamic_img_size=True, **options)
    patches = model.pos_embed[:, 0 if options else 1 :].reshape(10, 10, -1).double()
    expected = torch.einsum("im,jn,mnc->ijc", matrix(shape[0], 10), matrix(shape[1], 10), patches).flatten(0, 1)
    x = torch.zeros(2, *shape, 64)
    before = model._pos_embed(x)
    use_official_resampling(model)
    found = model._pos_embed(x)
    prefix = found.shape[1] - shape[0] * shape[1]
    assert torch.equal(found[:, :prefix], before[:, :prefix])
    torch.testing.assert_close(found[1, prefix:].double(), expected, rtol=0, atol=1e-5)
    native = torch.zeros(1, 10, 10, 64)
    assert torch.equal(model._pos_embed(native), tiny_vit(1, dynamic_img_size=True, **options)._pos_embed(native))


def test_unexpected_names_are_reported_in_one_line(tmp_path, caplog):
    state = tiny_vit(1).state_dict()
    del state["norm.weight"]
    state.update({"head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000), "mask_token": torch.ones(1, 64)})
    torch.save(state, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="sohes_d2.weights"):
        report = load_weights(tiny_vit(2), str(tmp_path / "w.pth"))
    assert set(report.unexpected) == {"head.weight", "head.bias", "mask_token"}
    assert report.missing == ("norm.weight",)
    [record] = caplog.records
    for word in ("missing: norm.* (1)", "head.* (2)", "mask_token", report.digest[:12]):
        assert word in record.getMessage()


def test_a_head_of_another_size_is_skipped(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "w.pth")
    model = timm.create_model("test_vit", num_classes=3)
    report = load_weights(model, str(tmp_path / "w.pth"))
    assert report.missing == report.unexpected == ("head.weight", "head.bias")


def test_a_convolutional_network_keeps_its_own_block_names(tmp_path):
    torch.manual_seed(1)
    good = timm.create_model("test_efficientnet", num_classes=0)
    torch.save({"state_dict": prefixed("module.encoder_q.", good.state_dict())}, tmp_path / "w.pth")
    model = timm.create_model("test_efficientnet", num_classes=0)
    assert load_weights(model, str(tmp_path / "w.pth")).digest == state_digest(good.state_dict())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3)}, "only 0 of the model's"),
        ({"epoch": 3}, "no state dict (found: entries ['epoch'])"),
        ([1, 2], "no state dict (found: list)"),
        ({"pos_embed": torch.ones(1, 13, 64)}, "13 positions, which is not a square grid"),
        ({**tiny_vit().state_dict(), "norm.bias": torch.ones(64, dtype=torch.int64)}, "norm.bias is torch.int64"),
        (
            {**tiny_vit().state_dict(), "norm.bias": torch.ones(64, dtype=torch.complex64)},
            "norm.bias is torch.complex64",
        ),
    ],
)
def test_mismatched_contents_are_explained(content, says, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(tiny_vit(), str(tmp_path / "odd.pth"))
    assert says in str(error.value) and "odd.pth" in str(error.value)


def test_another_width_reports_both_shapes(tmp_path):
    torch.save(timm.create_model("test_vit3", num_classes=0).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(WeightsError, match=r"\(1, 101, 96\) in the file and \(1, 101, 64\) in the model"):
        load_weights(tiny_vit(), str(tmp_path / "wide.pth"))


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_run_code_are_refused(zipped, tmp_path):
    flag, path = str(tmp_path / "code_has_run"), tmp_path / "evil.pth"
    content = {"model": tiny_vit().state_dict(), "args": Evil(flag)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match="would run code") as error:
        load_weights(tiny_vit(), str(path))
    assert "evil.pth" in str(error.value) and "safetensors.torch.save_file" in str(error.value)
    assert not os.path.exists(flag)


def nested(depth):
    content = {"a": torch.ones(2)}
    for _ in range(depth):
        content = {"model": content}
    return content


def circle():
    content = {"model": {}}
    content["model"]["model"] = content
    return content


@pytest.mark.parametrize("name", ["w.pth", "w.pkl"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (circle, "contains itself"),
        (lambda: nested(60), "nested more than 32 deep"),
        (lambda: {"a": torch.ones(1).expand(10**12)}, "larger than its bytes"),
        (lambda: {"a": torch.eye(3).to_sparse()}, ""),
        (lambda: {"a": torch.ones(3, device="meta")}, ""),
    ],
)
def test_cyclic_or_deep_contents_are_refused(make, says, name, tmp_path):
    if name == "w.pth":
        torch.save(make(), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(make()))
    with pytest.raises(WeightsError, match=rf"{name}.*{says}") as error:
        load_weights(tiny_vit(), str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_deep_pickles_give_one_line(tmp_path):
    deep = b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."
    (tmp_path / "deep.pkl").write_bytes(deep)
    with pytest.raises(WeightsError, match="nested more than 32 deep"):
        read_weights(str(tmp_path / "deep.pkl"))


def test_decompression_bombs_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as whole,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    with pytest.raises(WeightsError, match="would unpack to"):
        read_weights(str(tmp_path / "small.pth"))


def test_expanding_codecs_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return codecs.encode, ("a" * 10, "hex")

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": Bomb()}, protocol=2))
    with pytest.raises(WeightsError, match="the codec hex"):
        read_weights(str(tmp_path / "w.pkl"))


def test_files_are_detected_by_content(tmp_path):
    good = tiny_vit(1)
    save_file(good.state_dict(), str(tmp_path / "a.pkl"))
    torch.save(good.state_dict(), tmp_path / "b.safetensors")
    torch.save(good.state_dict(), tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    arrays = {key: value.numpy().astype(">f4") for key, value in good.state_dict().items()}
    (tmp_path / "d.pth").write_bytes(pickle.dumps({"model": arrays}, protocol=2))
    for name in ("a.pkl", "b.safetensors", "c.bin", "d.pth"):
        assert load_weights(tiny_vit(2), str(tmp_path / name)).digest == state_digest(good.state_dict()), name


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle", "safetensors"])
def test_damaged_bytes_give_one_line(writer, tmp_path):
    state = {"a": torch.arange(40.0), "b": torch.ones(3, 3)}
    path = tmp_path / "w.bin"
    if writer == "safetensors":
        save_file(state, str(path))
    elif writer == "pickle":
        path.write_bytes(pickle.dumps({"model": {key: value.numpy() for key, value in state.items()}}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "zip")
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        try:
            read_weights(str(path))
        except WeightsError as error:
            assert "w.bin" in str(error) and "\n" not in str(error)


def test_errors_of_broken_files_have_file_and_remedy(tmp_path):
    torch.save(tiny_vit().state_dict(), tmp_path / "whole.pth")
    save_file(tiny_vit().state_dict(), str(tmp_path / "whole.safetensors"))
    cases = {
        "cut.pth": ((tmp_path / "whole.pth").read_bytes()[:5000], "Download it again"),
        "cut.safetensors": ((tmp_path / "whole.safetensors").read_bytes()[:5000], "Download it again"),
        "page.pth": (b"<!doctype html><html>Not Found</html>", "web page"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS pointer"),
        "empty.pth": (b"", "0 bytes"),
    }
    for name, (content, says) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError) as error:
            load_weights(tiny_vit(), str(tmp_path / name))
        assert name in str(error.value) and says in str(error.value)
    os.mkfifo(tmp_path / "pipe")
    for name, says in {
        "absent.pth": "does not exist",
        "": "a folder, not a file",
        "pipe": "not a regular file",
    }.items():
        with pytest.raises(WeightsError, match=says):
            load_weights(tiny_vit(), str(tmp_path / name))


def test_random_weights_depend_only_on_the_seed():
    before = torch.random.get_rng_state()
    digests = []
    for initial, source in [(1, "random"), (2, "random:0"), (1, "random:5")]:
        model = tiny_vit(initial)
        before = torch.random.get_rng_state()
        report = load_weights(model, source)
        assert torch.equal(before, torch.random.get_rng_state())
        digests.append(report.digest)
    assert digests[0] == digests[1] != digests[2]
    assert report.origin == "random:5"
    with pytest.raises(WeightsError, match="not a number"):
        load_weights(tiny_vit(), "random:x")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """(address, pages) of a local web server: path -> bytes, or None for an answer that comes too late."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    pages: dict[str, bytes | None] = {}
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            body = pages.get(self.path, b"")
            if body is None:
                release.wait(10)
                body = b"late"
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", pages
    release.set()
    httpd.shutdown()
    httpd.server_close()


def test_urls_are_downloaded_once(server, tmp_path):
    address, pages = server
    good = tiny_vit(1)
    torch.save(good.state_dict(), tmp_path / "w.pth")
    pages["/a/w.pth"] = (tmp_path / "w.pth").read_bytes()
    for _ in range(2):
        report = load_weights(tiny_vit(2), f"{address}/a/w.pth")
        assert report.digest == state_digest(good.state_dict())
        assert report.origin == f"url:{address}/a/w.pth"
        pages.clear()  # the second load uses the cache
    with pytest.raises(WeightsError, match="--weights FILE"):
        load_weights(tiny_vit(), f"{address}/b/w.pth")


def test_the_hub_is_queried_only_for_a_few_seconds(server, monkeypatch):
    address, pages = server
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, filename, revision: f"{address}/{repo}/{filename}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert not W.hub_reachable(HUB_NAME)
    pages[f"/timm/{HUB_NAME}/config.json"] = b"{}"
    assert W.hub_reachable(HUB_NAME)
    pages[f"/timm/{HUB_NAME}/config.json"] = None
    start = time.monotonic()
    assert not W.hub_reachable(HUB_NAME, timeout=0.3)
    assert time.monotonic() - start < 2
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not W.hub_reachable(HUB_NAME)


def test_offline_the_error_gives_the_remedy(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    with pytest.raises(WeightsError) as error:
        load_weights(tiny_vit(), f"hub:{HUB_NAME}")
    for word in ("cannot be reached", f"https://huggingface.co/timm/{HUB_NAME}", "--weights FILE"):
        assert word in str(error.value)
    with pytest.raises(WeightsError, match="no pretrained weights of this name.*--weights FILE"):
        load_weights(tiny_vit(), "hub:vit_tiny_patch16_384.nobody")


def test_cached_hub_weights_need_no_network(monkeypatch, tmp_path):
    torch.manual_seed(1)
    published = timm.create_model("test_vit", num_classes=1000)
    save_file(published.state_dict(), str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, filename, revision=None: str(tmp_path / filename) if filename == "model.safetensors" else None,
    )
    monkeypatch.setattr(W.sources, "hub_reachable", lambda *args, **kwargs: pytest.fail("asked the network"))
    model = tiny_vit(2)
    report = load_weights(model, f"hub:{HUB_NAME}")
    assert report.origin == f"hub:{HUB_NAME}"
    assert torch.equal(model.blocks[3].attn.qkv.weight, published.blocks[3].attn.qkv.weight)
