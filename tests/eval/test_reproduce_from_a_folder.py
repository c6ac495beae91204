"""A published kind of table, repeated end to end: a LLaVA in a folder, and lmms-eval's own POPE on pictures made here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from sweep_grids import NEEDS
from transformers import AutoConfig, LlavaForConditionalGeneration
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval import demo


@pytest.fixture
def folder(tmp_path):
    """Random weights, with the processor of the built-in model."""
    torch.manual_seed(0)
    place = tmp_path / "tiny-llava"
    LlavaForConditionalGeneration(AutoConfig.from_pretrained(demo.WEIGHTS)).save_pretrained(place)
    demo.load()[1].save_pretrained(place)
    return place


@pytest.fixture
def task(tmp_path):
    """lmms-eval's POPE, prompts, scores and all, with four questions of our own in the place of its data."""
    pytest.importorskip("lmms_eval", reason=NEEDS)
    datasets = pytest.importorskip("datasets")
    spec = importlib.util.find_spec("lmms_eval")
    pope = Path(spec.submodule_search_locations[0]) / "tasks/pope"
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "utils.py").write_text((pope / "utils.py").read_text())
    rows = {
        "image": [Image.new("RGB", (96, 96), (60 * i, 90, 30)) for i in range(4)],
        "question": ["is there a dog in the image?"] * 4,
        "answer": ["yes", "no", "yes", "no"],
        "question_id": [str(i) for i in range(4)],
        "category": ["adversarial"] * 4,
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(place / "own.parquet")
    text = (pope / "pope.yaml").read_text()
    path = next(line for line in text.splitlines() if line.startswith("dataset_path:"))
    text = text.replace(path, "dataset_path: parquet").replace('task: "pope"', 'task: "pope_own"')
    text = text.replace("token: True", f"data_files: {{test: {place / 'own.parquet'}}}")
    (place / "pope_own.yaml").write_text(text)
    return place


@pytest.mark.long
def test_popes_own_prompts_and_scores_on_a_model_of_ones_own(folder, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    table = {
        "source": "made here",
        "model": "demo",
        "method": "hiprune",
        "columns": {"POPE": {"task": "pope_own", "metric": "pope_accuracy", "scale": 100}},
        "figures": {"all": [80.0], 8: [70.0]},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(table))
    out = tmp_path / "out"
    told = ["reproduce", tmp_path / "own.yaml", "--model", folder, "--include-path", task, "--out", out]
    done = CliRunner().invoke(app, [str(word) for word in told], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "3 done" in done.output
    page = (out / "page.md").read_text()
    assert "Another model" in page
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith(("| all", "| 8"))]
    assert [line[1] for line in lines] == ["80.0", "70.0"]
    for line in lines:
        assert float(line[3]) in (0, 25, 50, 75, 100)
