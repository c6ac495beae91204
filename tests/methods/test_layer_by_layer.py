"""PyramidDrop, PromptDistill and AIM: how many stay in which layer, who, what a cache holds, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from golden_cases.common import FACTS
from models import llava, prompt
from transformers import DynamicCache, StaticCache

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.methods.promptdistill import smoothed
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens

LLAVA = replace(FACTS, tokens_per_image=576)


def boundaries(method: Method, facts: ModelFacts = LLAVA) -> tuple[int, ...]:
    return tuple(step.layer for step in method.plan(facts))


# ---------------------------------------------------------------------- pyramiddrop


def test_pyramiddrop_as_published():
    method = tr.PyramidDrop()
    assert boundaries(method) == (8, 16, 24)
    assert method.lengths(576, (8, 16, 24), 32) == [576, 288, 144, 72]
    told = tr.PyramidDrop(layers=(8, 16, 24), ratios=(0.5, 0.25, 0.125))
    assert told.lengths(577, (8, 16, 24), 32) == [577, 288, 144, 72], "rounded down"


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.3, 0.28, 0.1, 0.05, 64, 300])
def test_pyramiddrop_fills_its_average(keep):
    method = tr.PyramidDrop(keep=keep)
    cuts = boundaries(method)
    lengths = method.lengths(576, cuts, 32)
    runs = [b - a for a, b in zip((0, *cuts), (*cuts, 32))]
    goal = keep if isinstance(keep, int) else keep * 576
    assert abs(sum(run * n for run, n in zip(runs, lengths)) / 32 - goal) < 0.5
    assert lengths == sorted(lengths, reverse=True)
    assert cuts[0] == (8 if goal > 0.28 * 576 else max(1, math.floor(goal / 576 * 16)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": (8, 4)}, ["layers=(8, 4)", "ascending ints >= 1", "(8, 16, 24)"]),
        ({"layers": (0, 4)}, ["layers=(0, 4)"]),
        ({"keep": 0.5, "ratios": (0.5, 0.25, 0.1)}, ["keep=0.5 and ratios", "one of the two"]),
        ({"ratios": (0.5, 0.75, 0.1)}, ["ratios=(0.5, 0.75, 0.1)", "3 numbers from 1 down to 0"]),
        ({"ratios": (0.5,)}, ["3 numbers"]),
        ({"ratios": 0.5}, ["ratios=0.5", "3 numbers"]),
        ({"keep": 0.2, "layers": (8, 16)}, ["keep=0.2 of 576", "first 8 of 32 layers", "average of 145 or more"]),
        ({"layers": (8, 32)}, ["layers=(8, 32)", "1 to 31"]),
    ],
)
def test_pyramiddrop_teaches(change, words):
    with pytest.raises(ValueError, match="allowed") as caught:
        tr.PyramidDrop(**change).plan(LLAVA)
    for word in words:
        assert word in str(caught.value)


def test_ratios_of_zero_leave_no_token():
    model = llava()
    inputs = prompt(model, [1, 2], "left")
    with tr.wrapped(model, tr.PyramidDrop(layers=(1, 3), ratios=(0.5, 0.0))), torch.no_grad():
        model(**inputs)
        assert [len(image.kept(layer)) for image in tr.trace(model).images for layer in (0, 1, 3)] == [16, 8, 0] * 3
        assert tr.report(model).tokens_kept == [[0], [0, 0]]
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_the_layer_to_come_sees_the_turns_before(static):
    """Text that was cached before a picture comes takes part in the softmax as if all came at once."""
    model = llava()
    inputs = prompt(model, [1])
    n, length = 4, inputs["input_ids"].shape[1]  # text before the picture
    signal = LastQueryAttention(2, ahead=True)
    heard = []

    class Spy(Method, register=False):
        name, title, stages = "spy", "spy", ("llm",)

        def plan(self, facts: ModelFacts):
            return (Step("llm", layer=2, needs=(signal,)),)

        def reduce(self, tokens):
            heard.append(tokens.signal(signal))
            return Reduction.top(heard[-1], 5)

    text = torch.randint(4, 60, (1, n), generator=torch.Generator().manual_seed(1))
    whole = {**inputs, "input_ids": torch.cat([text, inputs["input_ids"]], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with tr.wrapped(model, Spy()), torch.no_grad():
        model(**whole)
        config = model.get_decoder().config
        cache = StaticCache(config=config, max_cache_len=length + 20) if static else DynamicCache(config=config)
        cache = model(input_ids=text, past_key_values=cache, use_cache=True).past_key_values
        mask = torch.ones(1, n + length)
        model(**{**inputs, "attention_mask": mask}, past_key_values=cache, use_cache=True)
    together, in_turns = heard
    torch.testing.assert_close(in_turns, together, atol=2e-6, rtol=0)


# ---------------------------------------------------------------------- promptdistill


def test_neighbours_on_the_grid_are_averaged_over_nine_cells():
    layout = Layout(4, 5, frames=2)
    score = torch.randn(2, 40)
    source = torch.arange(40).expand(2, 40)
    padded = torch.nn.functional.pad(score.view(2, 2, 4, 5), (1, 1, 1, 1))
    expected = torch.stack(
        [padded[..., i : i + 4, j : j + 5] for i in range(3) for j in range(3)],
    ).mean(0)
    torch.testing.assert_close(smoothed(score, source, layout), expected.flatten(1))
    left = source[:, ::3]
    sparse = torch.zeros(2, 40).scatter(1, left, score[:, ::3])
    found = smoothed(score[:, ::3], left, layout)
    torch.testing.assert_close(found, smoothed(sparse, source, layout)[:, ::3])


def test_promptdistill_counts():
    one, two = tr.PromptDistill(keep=36), tr.PromptDistill(keep=36, layers=(6, 13))
    assert boundaries(one) == (14,)
    assert one.count(576, 0) == 36
    assert [two.count(576, i) for i in range(2)] == [144, 36], "the geometric mean in between"
    told = tr.PromptDistill(keep=0.25, layers=(6, 13), stage_keep=(300,))
    assert [told.count(576, i) for i in range(2)] == [300, 144]


@pytest.mark.parametrize(("truncate", "held"), [(0, [16, 16, 9, 4, 4]), (1, [9, 9, 9, 4, 4]), (-1, [4] * 5)])
def test_caches_before_a_selection_follow_it(truncate, held):
    model = llava()
    inputs = prompt(model, [1, 0, 1], "left")
    method = tr.PromptDistill(keep=4, layers=(1, 2), stage_keep=(9,), truncate=truncate)
    text = prompt(model, [1])["input_ids"].shape[1] - 16
    with tr.wrapped(model, method), torch.no_grad():
        cache = model(**prompt(model, [1]), use_cache=True).past_key_values
        lengths = [layer.keys.shape[2] - text for layer in cache.layers]
        assert lengths == held
        together = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:].tolist()
        real = inputs["attention_mask"][:1].bool()
        alone = {"input_ids": inputs["input_ids"][:1][real][None], "pixel_values": inputs["pixel_values"][:1]}
        one = model.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    assert together[0] == one


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": "grid5"}, ["pool='grid5'", "'flat5', 'grid3', None"]),
        ({"layers": (31,)}, ["layers=(31,)", "0 to 30"]),
        ({"layers": (3, 5)}, None),
        ({"stage_keep": (0.5,)}, ["stage_keep=(0.5,)", "0 fractions or counts"]),
        ({"stage_keep": 0.5}, ["stage_keep=0.5", "0 fractions or counts"]),
        ({"truncate": 2}, ["truncate=2", "-1, 0, 1"]),
    ],
)
def test_promptdistill_teaches(change, words):
    if words is None:
        tr.PromptDistill(**change).plan(LLAVA)
        return
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        tr.PromptDistill(**change).plan(LLAVA)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------- aim


@pytest.mark.parametrize(("depth", "start", "average"), [(28, 14, 0.661), (32, 13, 0.547)])
def test_the_published_schedules(depth, start, average):
    schedule = tr.AIM(slope=0.125).schedule(depth, None)
    assert schedule.start == start
    assert schedule.total(10**6) / 10**6 / depth == pytest.approx(average, abs=1e-3)
    assert [schedule.left(layer) for layer in (start - 1, start, start + 7)] == [1, 0.875, 0]


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.6, 0.8, 0.99, 64])
def test_aim_fills_its_average(keep):
    method = tr.AIM(keep=keep)
    facts = replace(LLAVA, decoder_depth=28, tokens_per_image=196)
    first, *later = method.plan(facts)
    tokens = VisualTokens(features=torch.randn(1, 196, 8), layout=Layout(14, 14), amount=first.amount)
    entered = method.reduce(tokens).num_kept
    held, n = [], entered
    shares = {step.layer: step.amount for step in later}
    for layer in range(28):
        n = math.floor(entered * shares[layer] + 1e-6) if layer in shares else n
        held.append(n)
    goal = keep if isinstance(keep, int) else keep * 196
    assert abs(sum(held) / 28 - goal) < 0.6


def test_frames_merge_by_themselves_and_share_the_budget():
    from tokenreduce.views import reduce_views

    method = tr.AIM(keep=10, prune=False)
    (step,) = method.plan(LLAVA)
    layout = Layout(2, 4, frames=3)
    tokens = VisualTokens(features=torch.randn(2, 24, 6), layout=layout, amount=step.amount)
    views = layout.split("frame")
    of = torch.arange(24).div(8, rounding_mode="floor").expand(2, -1)
    plan = reduce_views(method, tokens, views, of, [8, 8, 8])
    assert plan.num_kept == 10
    frame = plan.source // 8
    assert [int((frame[0] == t).sum()) for t in range(3)] == [4, 3, 3]
    for row in range(10):
        members = plan.assign[0] == row
        assert of[0, members].unique().numel() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": 31}, ["start=31", "0 to 30"]),
        ({"start": -1}, ["start=-1", "an int >= 0"]),
        ({"steps": 0}, ["steps=0", "an int >= 1"]),
        ({"slope": 2.0}, ["slope=2.0", "(0, 1]", "0.125"]),
        ({"temperature": 0.0}, ["temperature=0.0"]),
    ],
)
def test_aim_teaches(change, words):
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        tr.AIM(**change).plan(LLAVA)
    for word in words:
        assert word in str(caught.value)


def test_aim_cannot_keep_more_than_its_schedule_leaves():
    method = tr.AIM(keep=190, start=2)
    (first, *_) = method.plan(replace(LLAVA, tokens_per_image=None))
    tokens = VisualTokens(features=torch.randn(1, 196, 8), layout=Layout(14, 14), amount=first.amount)
    with pytest.raises(ValueError, match=r"keep=190 of 196 tokens: with start=2 .* allowed: fewer, or drop later"):
        method.reduce(tokens)
