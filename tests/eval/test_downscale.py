"""The baseline that scales pictures: tokens and costs of a cell by hand, and models on which it makes no sense."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.eval import demo
from tokenreduce.eval.recipe import Recipe

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

from tokenreduce.eval.sweep import Cell, Grid
from tokenreduce.eval.sweep.checks import check, served
from tokenreduce.eval.sweep.evaluator import Evaluator


def cell(place, keep, **changes):
    from tokenreduce.eval.harness import TASKS

    return Cell(str(place), "tr_demo_images", Recipe.of("downscale", keep), include=(str(TASKS),), limit=2, **changes)


# (tokens of the unscaled picture of 192 x 192 pixels, of the scaled one), by hand
CELLS = {
    # a unit is 8 pixels: 64 x 64 pixels at most are 8 x 8 tokens; of 32 allowed 5 x 5, since 6 x 6 are too many
    "qwen2_5_vl": (0.5, {"min_pixels": 64, "max_pixels": 4096}, 64, 25),
    # lmms-eval sizes the picture itself, to 160 x 160; 14 x 14 of 200 allowed
    "qwen3_vl": (0.5, {"min_pixels": 64, "max_pixels": 16384}, 400, 196),
    # a tile of 16 tokens and the picture on a canvas of two tiles, 4 x 4 tokens and 4 newlines; of four tiles before: 8 x 9
    "llava_next": (40, {}, 88, 36),
}


@pytest.mark.parametrize("folder", CELLS, indirect=True)
def test_a_cell_by_hand(folder):
    family, place = folder
    keep, arguments, tokens_in, kept = CELLS[family]
    worker = Evaluator()
    outcome = worker.evaluate(cell(place, keep, model_args=arguments))
    assert outcome.error is None, outcome.error
    found = outcome.result["measured"]
    assert (found["tokens_in"], found["tokens_kept"], found["equivalent_tokens"]) == (tokens_in, kept, kept)
    assert worker.lm.measured["name"] == f"downscale keep={keep}"

    bare = worker.evaluate(dataclasses.replace(cell(place, keep, model_args=arguments), recipe=Recipe()))
    assert bare.error is None, bare.error
    plain = bare.result["measured"]
    for name in ("tokens_in", "flops_unreduced", "kv_bytes_unreduced"):
        assert found[name] == plain[name], name
    assert found["flops"] < plain["flops"]
    text = worker.lm.model.config.get_text_config()
    column = (
        text.num_hidden_layers * 2 * text.num_key_value_heads * 8 * worker.lm.model.dtype.itemsize
    )  # 8 channels a head
    assert plain["kv_bytes"] - found["kv_bytes"] == (tokens_in - kept) * column
    whole = outcome.result["whole_prefill"]
    assert whole["flops_unreduced"] == bare.result["whole_prefill"]["flops_unreduced"]
    assert whole["flops"] < 0.7 * whole["flops_unreduced"]
    assert outcome.result["first_token"]["prompts"] == 2
    assert bare.result["first_token"] is None
    assert not tr.is_wrapped(worker.lm.model)


@pytest.mark.parametrize("folder", ["internvl"], indirect=True)
def test_tiles_of_two_prompts_and_a_budget_that_is_out_of_reach(folder):
    _, place = folder
    worker = Evaluator()
    found = worker.evaluate(cell(place, 0.5))
    assert found.error is None, found.error
    assert found.result["measured"]["tokens_in"] == 16 * 10  # 3 x 3 tiles and the whole picture
    assert found.result["measured"]["tokens_kept"] == 16 * 5  # of 80 allowed: 2 x 2 tiles and the whole picture
    refused = worker.evaluate(cell(place, 8))
    assert refused.error["kind"] == "refused"
    assert "keep=8 allows 8 of the 160 visual tokens" in refused.error["text"]
    assert "still makes 16" in refused.error["text"]
    assert worker.evaluate(dataclasses.replace(cell(place, 8), recipe=Recipe())).error is None


def test_a_model_of_fixed_size_is_refused_before_anything_runs():
    named = Grid.of({"model": "demo", "tasks": "tr_demo_images", "methods": ["downscale", "pool"], "keep": 0.25})
    with pytest.raises(
        ValueError, match=r"demo: downscale keep=0.25: LlavaProcessor makes 144 .* of every picture.*pool"
    ):
        check(named)
    found = Evaluator().evaluate(next(c for c in named.cells if c.recipe.downscale is not None))
    assert found.error["kind"] == "refused"
    assert "makes 144 visual tokens of every picture" in found.error["text"]
    check(Grid.of({"model": "demo", "tasks": "tr_demo_images", "methods": ["pool"], "keep": 0.25}))


def test_a_default_sweep_leaves_it_out_and_says_why(tmp_path):
    grid = Grid.of({"model": "demo", "tasks": "tr_demo_images", "keep": [0.5, 0.25]})
    assert sum(c.recipe.downscale is not None for c in grid.cells) == 2
    check(grid)
    left, told = served(grid)
    assert len(left.cells) == len(grid.cells) - 2
    assert all(c.recipe.downscale is None for c in left.cells)
    assert [line[:35] for line in told] == [
        "demo: downscale keep=0.5: LlavaProc",
        "demo: downscale keep=0.25: LlavaPro",
    ]
    shown = CliRunner().invoke(
        app,
        ["sweep", "--model", "demo", "--task", "tr_demo_images", "--keep", "0.5", "--dry-run", "--out", str(tmp_path)],
    )
    assert shown.exit_code == 0, shown.output
    assert "left out: demo: downscale keep=0.5: LlavaProcessor makes 144 visual tokens of every picture" in shown.output


@pytest.mark.parametrize("folder", ["qwen2_5_vl"], indirect=True)
def test_a_default_sweep_holds_it_where_size_matters(folder):
    grid = Grid.of({"model": str(folder[1]), "tasks": "tr_demo_images", "keep": [0.5]})
    left, told = served(grid)
    assert left.cells == grid.cells
    assert told == []


def test_the_name_alone_and_on_a_model():
    assert Recipe.from_dict(Recipe.of("downscale", 64).as_dict()) == Recipe.of("downscale", 64)
    row = next(row for row in tr.methods() if row["name"] == "downscale")
    assert (row["stages"], row["paper"]) == ("the picture", "baseline")
    with pytest.raises(ValueError, match=r"downscale cannot be combined \(downscale \+ fastv\)"):
        Recipe.of("downscale:0.5+fastv:0.5")
    with pytest.raises(ValueError, match=r"downscale cannot be combined \(images_as_video\)"):
        Recipe.of("downscale", 0.5, images_as_video=True)
    with pytest.raises(ValueError, match="positions='renumber' of downscale; allowed: 'keep'"):
        Recipe.of("downscale", 0.5, {"positions": "renumber"})
    model, _ = demo.load()
    with pytest.raises(ValueError, match=r"acts on the picture.*tr.scaled_down\(picture, 0.5, processor\)"):
        tr.wrap(model, "downscale", keep=0.5)
    assert not tr.is_wrapped(model)
