"""The page on savings: its arithmetic is that of reports, its data belongs to models that are served, and it is up to date."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

ROOT = Path(__file__).resolve().parent.parent
KEEP = 0.5
MLLAMA_ROWS = [4 * 24]  # 17 rows of a tile are filled up to 24

#: per tiny family with one picture: rows of the tower's attention, patches, rows in the projector, other placeholders
CASES = {
    "llava": ([17], 16, 16, 0),
    "gemma3": ([64], 64, 16, 0),
    "internvl": ([65], 64, 16, 0),
    "qwen2_vl": (None, None, None, 0),
    "qwen2_5_vl": (None, None, None, 0),
    "qwen3_vl": (None, None, None, 0),
    "mistral3": (None, None, None, None),
    "mllama": (MLLAMA_ROWS, 64, 68, 4),
    "florence2": ([], 0, 17, 1),
}


@pytest.fixture
def savings(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import model_savings

    return model_savings


@pytest.mark.every_family
@pytest.mark.parametrize("key", CASES)
def test_a_bill_is_what_the_report_of_such_a_model_says(savings, key):
    model = zoo.build(key)
    inputs = zoo.inputs(key, ([["i2"]], None) if key == "mllama" else ([["i0"]], None), model)
    more = {"decoder_input_ids": torch.tensor([[2]])} if key == "florence2" else {}
    with tr.wrapped(model, tr.Uniform(keep=KEEP)), torch.no_grad():
        model(**inputs, **more, use_cache=True)
        report = tr.report(model)
    rows, patches, projected, others = CASES[key]
    windows: list[int] = []
    if rows is None:
        if key == "mistral3":  # a break behind every row but the last, and an end
            height, width = (inputs["image_sizes"][0] // model.config.vision_config.patch_size).tolist()
            patches, others = height * width, 0  # these are text to a bill
        else:
            patches = int(inputs["image_grid_thw"].prod())
        rows, projected = [patches], patches // 4
        if key == "qwen2_5_vl":
            _, height, width = (inputs["image_grid_thw"][0] // 2).tolist()
            windows = savings.windows_of(height, width, side=2)
    tokens = report.tokens_in[0][0]
    size = savings.Published(
        key, 0, "", {}, "", tokens, others, rows, patches, projected, windows, side=32 if key == "florence2" else 0
    )
    text = inputs["input_ids"].shape[1] - (0 if key == "mllama" else tokens + others)
    for keep, pick in ((KEEP, 0), (1.0, 1)):
        found = savings.bill(model, size, keep, text)
        stages = {name: (cost.flops, cost.flops_unreduced)[pick] for name, cost in report.by_stage.items()}
        if key != "florence2":  # where reports count the matrices of the tower alone, the page counts all of it
            assert found["tower"] == stages["tower"]
        assert found["projector"] == stages["projector"]
        assert found["prefill"] == stages["prefill"]
        assert found["kv_bytes"] * 2 == (report.kv_bytes, report.kv_bytes_unreduced)[pick]  # of float32


def test_every_size_is_of_a_served_type_and_has_the_published_parameters(savings):
    data = json.loads(savings.DATA.read_text())
    served = {row["model_type"] for row in tr.families()}
    assert {row["model_type"] for row in data["models"]} <= served
    assert [row["name"] for row in data["models"]] == [size.name for size in savings.SIZES]
    assert len(data["models"]) >= 20
    for row, size in zip(data["models"], savings.SIZES, strict=True):
        assert row["parameters"] / 1e9 == pytest.approx(size.parameters, rel=0.02)


def test_a_published_size_is_counted_as_the_data_says(savings):
    row, size = json.loads(savings.DATA.read_text())["models"][0], savings.SIZES[0]
    model = savings.build(size)
    assert {str(keep): savings.bill(model, size, keep) for keep in savings.KEEPS} == row["bills"]


def test_the_page_is_what_the_data_gives(savings):
    made = savings.page(json.loads(savings.DATA.read_text()))
    assert savings.PAGE.read_text() == made, "run python benchmarks/model_savings.py --page"
