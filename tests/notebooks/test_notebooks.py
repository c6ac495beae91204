"""Every notebook runs from top to bottom in a kernel of its own, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install 'tokenreduce[dev]' brings nbclient")
nbclient = pytest.importorskip("nbclient", reason="pip install 'tokenreduce[dev]' brings nbclient")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))  # tokenreduce
    spec = tmp_path / "kernels/here"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(f'{{"argv": {argv!s}, "display_name": "here"}}'.replace("'", '"'))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="here", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert shown
    assert not [o for o in shown if o.output_type == "error"]
    views = [o.data[WIDGET]["model_id"] for o in shown if WIDGET in o.get("data", {})]
    assert bool(views) == ("explore(" in path.read_text())
    for view in views:  # what a page needs to show the panel without a kernel is in the notebook
        state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        children = state[view]["state"]["children"]
        assert {state[c.removeprefix("IPY_MODEL_")]["model_name"] for c in children} == {"ImageModel", "VBoxModel"}


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]
    for path in NOTEBOOKS:  # each says what to change for a model of one's own
        assert "llava-hf/llava-1.5-7b-hf" in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_are_small_and_free_of_errors(path):
    assert path.stat().st_size < 1_000_000
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(c.execution_count for c in cells)
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
