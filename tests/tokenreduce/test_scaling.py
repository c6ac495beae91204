"""Pictures scaled down in front of real processors: the tokens that are counted are those that the processor writes."""

from __future__ import annotations

import numpy as np
import pytest
import test_zoo_processors as processors
import torch
from PIL import Image
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.budgets import Budget
from tokenreduce.cli import app
from tokenreduce.eval import demo
from tokenreduce.picture_tokens import PictureTokens
from tokenreduce.scaling import SHORTEST_SIDE, BudgetUnreachable, Scaling

DYNAMIC = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm")
FIXED = ("llava", "video_llava", "gemma3", "paligemma")
SIZES = [(128, 96), (64, 64), (33, 70)]


@pytest.fixture
def processor(request, monkeypatch):
    """As the family's processor is, with a turn of one picture and a word for its template."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", lambda n: "word", raising=False)
    made = processors.processor(request.param)
    made.chat_template = processors.prompt(request.param, ["i0"])
    return made


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def written(processor, image: Image.Image) -> int:
    """Places of visual tokens in what the processor writes; 3 is the id of ``<image>`` in every tiny family."""
    made = processor(text=[processor.chat_template], images=[image], return_tensors="pt")
    return int((made["input_ids"] == processors.NAMES["<image>"]).sum())


@pytest.mark.parametrize("processor", DYNAMIC, indirect=True)
def test_counts_are_those_of_the_processor_and_the_picture_is_the_largest(processor):
    reached = 0
    for size in SIZES:
        whole, sizes = picture(size), all_sizes(size)
        counts = {s: written(processor, whole.resize(s)) for s in sizes}  # by brute force
        for keep in (0.7, 0.5, 0.25, 40):
            budget = Budget(keep).count(counts[size])
            try:
                found = tr.scaled_down(whole, keep, processor)
            except BudgetUnreachable:
                assert min(counts.values()) > budget
                continue
            reached += 1
            assert (found.tokens_unscaled, found.budget) == (counts[size], budget)
            assert found.tokens == written(processor, found.picture) <= budget
            above = [counts[s] > budget for s in sizes[sizes.index(found.picture.size) + 1 :]]
            # where tiles are chosen by aspect, rounding makes a few larger sizes exceptions
            assert (
                all(above) if processor.__class__.__name__.startswith(("Qwen", "Idefics", "Smol")) else all(above[:1])
            )
    assert reached >= 3


def all_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    longer = max(size)
    sizes = [tuple(max(1, round(side * n / longer)) for side in size) for n in range(1, longer + 1)]
    return [s for s in sizes if min(s) >= min(SHORTEST_SIDE, min(size))]


@pytest.mark.parametrize("processor", ["qwen2_5_vl"], indirect=True)
def test_figures_by_hand(processor):
    # units of 8 pixels: 16 x 12 = 192 tokens; half is 96, and 11 x 9 = 99 too many: 91 x 68 pixels round to 11 x 8
    found = tr.scaled_down(picture((128, 96)), 0.5, processor)
    assert (found.tokens_unscaled, found.budget, found.tokens) == (192, 96, 88)
    assert found.picture.size == (91, 68)


@pytest.mark.parametrize("processor", ["qwen2_5_vl"], indirect=True)
def test_a_size_is_asked_once_and_few_are(processor):
    calls = []
    asked = Scaling(processor, Budget(0.25))
    asked.tokens.processor = type("Counted", (), {
        "__call__": lambda self, **given: calls.append(given["images"][0].size) or processor(**given),
        "__getattr__": lambda self, name: getattr(processor, name),
    })()  # fmt: skip
    for _ in range(3):
        asked.scale(picture((640, 480)))
    assert len(calls) == len(set(calls)) <= 16


@pytest.mark.parametrize("processor", ["smolvlm"], indirect=True)
def test_the_whole_budget_leaves_the_picture_alone(processor):
    whole = picture((96, 64)).convert("L")
    found = tr.scaled_down(whole, 1.0, processor)
    assert found.picture is whole
    assert found.tokens == found.budget == found.tokens_unscaled == 16 * 7  # 3 x 2 tiles and the whole picture
    assert tr.scaled_down(whole, 16, processor).picture.mode == "RGB"


@pytest.mark.parametrize("processor", FIXED, indirect=True)
def test_a_processor_that_resizes_all_alike_is_refused_by_name(processor):
    name = type(processor).__name__
    with pytest.raises(
        BudgetUnreachable, match=rf"allows 4 visual tokens, but {name} makes 16 .* at every size.*'?\"pool\""
    ):
        tr.scaled_down(picture((64, 48)), 0.25, processor)
    assert PictureTokens(processor).fixed() == 16


@pytest.mark.parametrize("processor", DYNAMIC, indirect=True)
def test_dynamic_resolution_is_told(processor):
    assert PictureTokens(processor).fixed() is None


def test_the_demo_model_is_of_fixed_size():
    _, processor = demo.load()
    assert PictureTokens(processor).fixed() == 144
    with pytest.raises(BudgetUnreachable, match="makes 144 of this picture at every size"):
        tr.scaled_down(picture((192, 192)), 0.5, processor)


@pytest.mark.parametrize("processor", ["internvl"], indirect=True)
def test_a_budget_below_the_smallest_says_what_can_be_reached(processor):
    with pytest.raises(
        BudgetUnreachable, match=r"allows 8 of the 80 .* still makes 16 of the smallest, 11 x 8; allowed here: keep=16"
    ):
        tr.scaled_down(picture((128, 96)), 8, processor)


@pytest.mark.parametrize("processor", ["qwen2_vl"], indirect=True)
def test_wrong_arguments_teach(processor):
    with pytest.raises(TypeError, match="picture is a ndarray; allowed: a PIL image"):
        tr.scaled_down(np.zeros((8, 8, 3)), 0.5, processor)
    with pytest.raises(TypeError, match=r"processor is a Tokenizer.*; allowed: what AutoProcessor"):
        tr.scaled_down(picture((64, 64)), 0.5, type("Tokenizer", (), {"__call__": lambda self: None})())
    with pytest.raises(ValueError, match=r"keep=1.5 is outside"):
        tr.scaled_down(picture((64, 64)), 1.5, processor)


def test_compare_and_run_say_where_the_baseline_of_pictures_acts():
    model, _ = demo.load()
    inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"downscale acts on the picture.*tr.scaled_down\(picture, 0.5, processor\)"):
        tr.compare(model, inputs, ["downscale"], keep=0.5)
    done = CliRunner().invoke(app, ["run", "--model", "demo", "--method", "downscale", "--keep", "0.5"])
    assert done.exit_code != 0
    assert "downscale acts on the picture" in " ".join(done.output.split())
    assert not tr.is_wrapped(model)
