"""`sohes setup`, without installing anything."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from sohes_d2.cli import setup as script
from sohes_d2.errors import SOHESError


def make_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("pkg-0.6/detectron2/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_wheel_contains_only_python_and_yaml_files(tmp_path):
    archive = make_archive(
        tmp_path / "pkg-0.6.tar.gz",
        {
            "pkg-0.6/LICENSE": b"licence",
            "pkg-0.6/setup.py": b"raise SystemExit",
            "pkg-0.6/detectron2/__init__.py": b"__version__ = '0.6'",
            "pkg-0.6/detectron2/layers/csrc/vision.cpp": b"int x;",
            "pkg-0.6/detectron2/model_zoo/configs/a.yaml": b"A: 1",
            "pkg-0.6/projects/PointRend/point_rend/__init__.py": b"",
            "pkg-0.6/projects/TensorMask/x.py": b"",
            "pkg-0.6/detectron2/../../outside.py": b"",
            "/pkg-0.6/detectron2/absolute.py": b"",
        },
    )
    wheel = script.build_wheel(archive, tmp_path)
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        record = contents.read(f"{info}/RECORD").decode().splitlines()
        assert contents.read("detectron2/__init__.py") == b"__version__ = '0.6'"
    assert names == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/configs/a.yaml",
        "detectron2/projects/point_rend/__init__.py",
        *(f"{info}/{name}" for name in ("LICENSE", "METADATA", "WHEEL", "RECORD")),
    }
    assert {line.split(",")[0] for line in record} == names
    assert f"{info}/LICENSE,{script.digest(b'licence')},7" in record


def test_archive_without_the_package(tmp_path):
    archive = make_archive(tmp_path / "pkg-0.6.tar.gz", {"pkg-0.6/README.md": b""})
    with pytest.raises(SOHESError, match="no detectron2/__init__.py"):
        script.build_wheel(archive, tmp_path)


def test_digest_has_the_wheel_format():
    assert script.digest(b"") == "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"


def test_an_existing_installation_is_used(monkeypatch, capsys):
    monkeypatch.setattr(script, "importable", lambda: "0.6 at /somewhere")
    assert script.main([]) == 0
    assert capsys.readouterr().out == "Detectron2: already installed: 0.6 at /somewhere\n"


def test_sdist_is_used_if_git_does_not_respond(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "importable", lambda: None)
    monkeypatch.setattr(script, "REPOSITORY", f"file://{tmp_path}/absent.git")
    monkeypatch.setattr(script, "install_from_sdist", lambda: "the archive")
    assert script.main([]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Detectron2: could not be installed from git: ")
    assert second == "Detectron2: took the archive"


def test_nothing_reachable(monkeypatch, capsys):
    def fail():
        raise SOHESError("no index")

    monkeypatch.setattr(script, "install_from_sdist", fail)
    assert script.main(["--source", "sdist", "--force"]) == 1
    assert "could not be installed from sdist: no index" in capsys.readouterr().out
