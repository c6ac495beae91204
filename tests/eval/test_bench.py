"""tokenreduce bench: every operation equals its plain form, rows hold what they say, wrong requests are refused."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval.bench import models, operations, run, shapes, timing, towers
from tokenreduce.tables import Table

CPU = torch.device("cpu")
SMALL = {
    "temporal_similarity": {"T": 5, "N": 9},
    "temporal_segmentation": {"T": 20, "N": 9},
    "holitom": {"T": 12, "N": 30},
    "greedy_selection": {"B": 2, "N": 40, "K": 9},
    "suppressed_selection": {"B": 2, "N": 40, "K": 9},
}


def bench(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["bench", *arguments])
    return found.exit_code, " ".join(found.output.split())


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_operations_equal_their_plain_forms(name) -> None:
    module = importlib.import_module(f"tokenreduce.eval.bench.ops.{name}")
    assert operations.cases(name, CPU)
    variants = {"greedy_selection": ({}, {"DPP": 1}), "attention_received": ({}, {"S": 3, "L": 5})}
    for more in variants.get(name, ({},)):
        case = module.case({**SMALL.get(name, {"B": 2, "N": 40}), **more}, CPU, torch.float32)
        assert case.difference(case.ours(), case.plain()) <= case.tolerance
        assert case.bytes > 0


def test_an_operation_that_is_wrong_is_not_timed(monkeypatch) -> None:
    module = importlib.import_module("tokenreduce.eval.bench.ops.energy_score")
    monkeypatch.setattr(module, "SIZES", [{"B": 1, "N": 8}])
    monkeypatch.setattr(module, "energy_score", lambda x, margin: torch.ones(x.shape[:2]))
    with pytest.raises(RuntimeError, match="energy_score at B=1 N=8 differs from the plain formulation"):
        operations.measure(["energy_score"], CPU, torch.float32, rounds=1)


def test_arms_take_turns() -> None:
    order: list[str] = []
    laps = timing.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert {name: len(times) for name, times in laps.items()} == {"a": 3, "b": 3}
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert changes >= 7  # warm-up, sizing, three rounds


def test_peak_is_the_largest_tensor_on_a_cpu() -> None:
    assert timing.peak_bytes(lambda: torch.ones(3, 5) + 1, CPU) == 60
    assert timing.peak_bytes(lambda: torch.ones(4, 2).sort(dim=0), CPU) == 64


def test_flops_of_a_tower_are_those_of_its_blocks() -> None:
    tower = towers.build("vit-b-16", 2, CPU, torch.float32)
    n, width = 197, 768
    weights = (
        2 * n * sum(p.numel() for name, p in tower.blocks.named_parameters() if name.endswith("weight") and p.ndim == 2)
    )
    assert towers.flops(tower, 0) == weights + 2 * 4 * n * n * width
    assert towers.flops(tower, 13) < towers.flops(tower, 0)


def test_models_and_the_file(tmp_path) -> None:
    out, picture = tmp_path / "demo.json", tmp_path / "demo.png"
    arguments = ("models", "--shape", "demo", "--methods", "fastervlm,random", "--keep", "36", "--rounds", "1")
    arguments += ("--batch", "1,2")
    code, text = bench(*arguments, "--json", str(out), "--plot", str(picture))
    assert code == 0, text
    assert f"wrote {picture}" in text
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200
    content = json.loads(out.read_text())
    assert [(row["batch"], row["method"]) for row in content["rows"]] == [
        (batch, name) for batch in (1, 2) for name in ("fastervlm", "random")
    ]
    for row in content["rows"]:
        assert (row["tokens_in"], row["tokens"]) == (144, 36)
        assert row["flops_ideal"] > 1
        assert row["of_products"] * row["products_speedup"]["median"] == pytest.approx(row["prefill_speedup"]["median"])
        assert row["kv_mib"] < row["unreduced_kv_mib"]
        assert min(arm["low"] for arm in row["decode_ms_per_token"].values()) > 0
        bill = row["by_stage"]
        assert list(bill) == ["tower", "projector", "prefill", "decode step"]
        assert bill["tower"]["flops"] == bill["tower"]["flops_unreduced"]
        assert bill["prefill"]["flops_unreduced"] / bill["prefill"]["flops"] == pytest.approx(row["flops_ideal"])
        assert all(min(cost["seconds"], cost["seconds_unreduced"]) > 0 for cost in bill.values())
        step = row["decode_ms_per_token"]["unreduced"]["median"] / 1e3
        assert bill["decode step"]["seconds_unreduced"] == pytest.approx(step)
        before_decoder = sum(bill[stage]["seconds"] for stage in ("tower", "projector"))
        assert row["first_token_ms"]["high"] / 1e3 > before_decoder  # image in, first token out
    rows = models.table(content)
    told = {"model", "device", "method", "budget", "tower, ms", "prefill, ms", "decode, ms", "of ideal", "own cost"}
    assert told <= set(rows[0])
    for row, measured in zip(rows, content["rows"]):
        assert (row["model"], row["method"], row["budget"]) == ("demo", measured["method"], "36")
        assert row["visual tokens"] == "144 to 36"
        assert all(f" {value} " in text for value in row.values())  # what is printed
    assert content["environment"]["torch"] == torch.__version__
    assert bench(*arguments, "--json", str(out))[0] == 0  # its own file
    out.write_text("{}")
    code, text = bench(*arguments, "--json", str(out))
    assert code == 2
    assert "'tokenreduce bench' did not write it" in text
    assert out.read_text() == "{}"


@pytest.mark.parametrize("name", [name for name in shapes.SHAPES if name != "demo"])
def test_shapes_are_as_published_and_fit_their_prompts(name) -> None:
    """At the published depth but without weights: the parameters of a 7B model, and one placeholder per visual token."""
    shape = shapes.SHAPES[name]
    with torch.device("meta"):
        model = shape.build(shape.depth, shape.tower_depth, torch.device("meta"), torch.float32, "sdpa")
    layers = model.get_decoder().layers
    assert len(layers) == shape.depth
    assert 6e9 < sum(p.numel() for p in layers.parameters()) < 7e9
    ids = shape.inputs(CPU, torch.float32, batch=2)["input_ids"]
    assert len(ids) == 2
    assert int((ids == (shapes.IMAGE if shape.media == "image" else shapes.VIDEO)).sum()) == 2 * shape.tokens
    assert models.layers_for(shape, CPU, None, None) == (3, 4)
    assert models.layers_for(shape, CPU, 99, 99) == (shape.depth, shape.tower_depth)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ops", "--only", "attention"), "--only='attention' is no operation; allowed: attention_received,"),
        (("models", "--shape", "gpt"), "--shape='gpt'; allowed: demo, llava-1.5-7b,"),
        (("models", "--shape", "demo", "--methods", "fastest"), "--methods names 'fastest'; allowed: "),
        (("models", "--shape", "demo", "--methods", "holitom"), "it reduces video, not image"),
        (("towers", "--tower", "vit-s"), "--tower='vit-s'; allowed: vit-b-16, vit-l-16-384"),
        (("towers", "--batch", "1,x"), "--batch='1,x'; allowed: whole numbers"),
        (("ops", "--json", "/nowhere/x.json"), "the folder '/nowhere' does not exist"),
        (("models", "--plot", "/nowhere/x.png"), "--plot='/nowhere/x.png': the folder '/nowhere' does not exist"),
        (("models", "--plot", "x.txt"), "--plot='x.txt'; allowed: a name ending in .png,"),
        (("towers", "--plot", "x.png"), "--plot='x.png' with `bench towers`; allowed: `bench models`"),
    ],
)
def test_wrong_requests_are_refused(arguments, words) -> None:
    code, text = bench(*arguments)
    assert code == 2
    assert words in text


def test_a_class_that_is_not_there_is_explained(monkeypatch) -> None:
    absent = dataclasses.replace(shapes.SHAPES["llava-next"], model="LlavaOfTomorrow")
    monkeypatch.setitem(shapes.SHAPES, "llava-next", absent)
    with pytest.raises(ValueError, match=r"transformers .* has no LlavaOfTomorrow"):
        run.models_table(run.Place(CPU, torch.float32, 1), "llava-next", None, None, (1,), None, None, "sdpa")


def test_towers_are_measured_in_turns() -> None:
    tower = towers.build("vit-b-16", 2, CPU, torch.float32)
    rows = towers.measure(tower, "vit-b-16", [1], rounds=1)
    assert [row["arm"] for row in rows] == ["tome", "tome, plain attention"]
    assert all(row["flops_ideal"] > 1 and row["of_ideal"] > 0 for row in rows)


def test_a_table_is_pasted_whole() -> None:
    table = Table([{"method": "a|b", "budget": 64}, {"method": "longer name", "budget": 0.25}])
    head, rule, *rows = table.markdown().splitlines()
    assert head == "| method      | budget |"
    assert set(rule) == set("|- ")
    assert rows == ["| a\\|b        | 64     |", "| longer name | 0.25   |"]
    assert Table().markdown() == "(empty)"
