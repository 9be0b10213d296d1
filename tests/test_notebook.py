"""The notebook of the documentation runs without errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install '.[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="no nbclient: pip install '.[notebook]'")
pytest.importorskip("ipykernel", reason="no ipykernel: pip install '.[notebook]'")

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"


def test_the_quickstart_runs(monkeypatch, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "outputs are not kept: they would be megabytes"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in code]
    text = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    assert "text/html" in shown[0], "a forest shows itself"
    assert "image/png" in shown[1] and text[1].count("score") == 5
    assert code[2].outputs[0].data["text/plain"].startswith("((134, 200), dtype('bool'), ")
    assert "True" in code[2].outputs[0].data["text/plain"]
    assert len(text[3].splitlines()) >= 1 and code[4].outputs[0].data["text/plain"] != "[]"
    assert "text/html" in shown[5], "a table"
    assert ", 134, 200) True" in text[6] and "predicted_iou" in text[6] and "parent_id" in text[6]
    assert len(list(tmp_path.rglob("coffee.json"))) == 1
