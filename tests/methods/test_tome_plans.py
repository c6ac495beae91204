"""What ToMe plans: schedules, counts of whole towers; in wrapped models; errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import FACTS, alone, random
from tome_tokens import shown, sizes

import tokenreduce as tr
from tokenreduce.methods.tome import ToMe
from tokenreduce.registry import make
from tokenreduce.schedules import fit, schedule, spread
from tokenreduce.signals import Keys


def test_schedules_in_three_forms() -> None:
    assert schedule(5, 4) == [5, 5, 5, 5]
    assert schedule([5, 1], 4) == [5, 1, 0, 0]
    assert schedule((8, -1.0), 3) == [16, 8, 0]
    assert schedule((8, 1.0), 3) == [0, 8, 16]
    assert schedule((7, 0.5), 1) == [7]
    assert schedule([], 2) == [0, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(total=st.integers(0, 600), depth=st.integers(1, 40), inflection=st.floats(-1, 1))
def test_spread_is_exact_and_linear(total, depth, inflection) -> None:
    counts = spread(total, depth, inflection)
    assert sum(counts) == total
    assert min(counts) >= 0
    if depth > 1:
        ideal = [total / depth * (1 + inflection * (2 * i / (depth - 1) - 1)) for i in range(depth)]
        assert all(abs(a - b) < 1 for a, b in zip(counts, ideal))


def test_spread_gives_the_remainder_to_the_earliest_blocks() -> None:
    assert spread(576 - 64, 23) == [23] * 6 + [22] * 17
    assert spread(6, 3, -1.0) == [4, 2, 0]
    assert spread(6, 3, 1.0) == [0, 2, 4]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), part=st.floats(0, 1), depth=st.integers(1, 24), inflection=st.floats(-1, 1))
def test_every_count_that_halving_can_reach_is_reached(n, part, depth, inflection) -> None:
    least = math.ceil(n / 2**depth)
    k = least + round(part * (n - least))
    left = n
    for r in fit(spread(n - k, depth, inflection), n, k):
        assert 0 <= r <= left // 2
        left -= r
    assert left == k
    if least > 1:
        with pytest.raises(ValueError, match=f"keep={least - 1} of {n} patches.* leave at least {least};"):
            fit(spread(n - least + 1, depth, inflection), n, least - 1)


def test_what_a_block_cannot_merge_is_left_to_later_ones() -> None:
    assert fit([10, 2, 0], 16, 4) == [8, 4, 0]
    assert fit([4, 4, 4], 16, 4) == [4, 4, 4]
    assert fit([5, 5, 5], 16, 2) == [8, 4, 2]  # rather more at once than too many at the end


def test_counts_of_a_clip_tower() -> None:
    """577 rows, 23 blocks that count: r = 21, 16, 8 leave 94, 209, 393 rows with [CLS]."""
    for r, rows in ((21, 94), (16, 209), (8, 393)):
        steps = ToMe(r=r).plan(FACTS)
        assert [step.layer for step in steps] == list(range(23))
        assert 577 - sum(step.amount for step in steps) == rows
        same = ToMe(keep=rows - 1).plan(FACTS)
        assert [step.amount for step in same] == [r] * 23
    assert sum(step.amount for step in ToMe().plan(FACTS)) == 288


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_counts_are_exact_for_every_size(prefix) -> None:
    for n in range(1, 301, 1 if prefix == 1 else 7):
        for keep in (1, n // 3 or 1, n, 0.1, 0.5, 1.0):
            facts = alone(n, depth=9, prefix=prefix)
            wanted = keep if isinstance(keep, int) else max(1, round(keep * n))
            steps = ToMe(keep=keep).plan(facts)
            assert n - sum(step.amount for step in steps) == wanted


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), part=st.floats(0, 1), inflection=st.floats(-1, 1), seed=st.integers(0, 9))
def test_a_tower_ends_with_the_count(prefix, n, part, inflection, seed) -> None:
    k = max(math.ceil(n / 16), round(part * n))
    method = ToMe(keep=k, inflection=inflection)
    x = random(2, prefix + n, 4, seed=seed)
    size = torch.ones(x.shape[:2])
    for step in method.plan(alone(n, depth=4, prefix=prefix)):
        assert step.amount > 0
        assert step.needs == (Keys(step.layer),)
        tokens = shown(x, x, step.amount, prefix, size, step.layer)
        plan = method.reduce(tokens).check(tokens)
        x, size = plan.carry(x), sizes(plan, size)
    assert x.shape[1] == prefix + k
    assert size.sum(dim=1).tolist() == [prefix + n] * 2


def test_nothing_to_merge_attaches_nothing() -> None:
    for method in (ToMe(keep=1.0), ToMe(keep=576), ToMe(r=0), ToMe(r=[]), ToMe(r=[0, 0]), ToMe(r=(0, -1.0))):
        assert method.plan(FACTS) == ()
        assert method.is_identity(576)
    for method in (ToMe(), ToMe(keep=64), ToMe(r=1), ToMe(r=[0, 1]), ToMe(r=(1, 0.5))):
        assert method.plan(FACTS)
        assert not method.is_identity(576)


def test_presets_merge_as_many_as_their_papers_say() -> None:
    siglip = dataclasses.replace(FACTS, tower_depth=27, feature_block=25, tower_grid=(54, 54))
    steps = ToMe.tinychart().plan(siglip)
    assert 54 * 54 - sum(step.amount for step in steps) == 732
    assert ToMe.tinychart(20).counts(siglip) == [20] * 26
    assert ToMe.tinychart().policy == ToMe.auroracap().policy == "renumber"
    huge = dataclasses.replace(FACTS, tower_depth=32, feature_block=30)  # whatever the picture, known in front of it
    x, size = torch.randn(1, 730, 8), torch.ones(1, 730)
    for step in ToMe.auroracap(0.1).plan(huge):
        tokens = shown(x, x, step.amount, 1, size, step.layer)
        tokens.layout = tr.Layout(27, 27)
        plan = ToMe.auroracap(0.1).reduce(tokens).check(tokens)
        x, size = plan.carry(x), sizes(plan, size)
    assert x.shape[1] == 1 + 729 - 31 * int(729 * 0.9 / 32)
    assert ToMe.auroracap(1).is_identity(729)
    for ratio in (0, 1.5, True, "half"):
        with pytest.raises(ValueError, match="allowed: the share of patches kept"):
            ToMe.auroracap(ratio)


def test_blocks_after_the_features_do_not_merge() -> None:
    deep = dataclasses.replace(FACTS, feature_block=3)
    assert [step.layer for step in ToMe(r=2).plan(deep)] == [0, 1, 2, 3]
    assert [step.layer for step in ToMe(r=[0, 3, 0, 3, 3]).plan(deep)] == [1, 3]
    assert [step.amount for step in ToMe(r=(4, -1.0)).plan(FACTS)] == [r for r in schedule((4, -1.0), 24)[:23] if r]


def test_steps_carry_the_switches() -> None:
    assert {step.when for step in ToMe().plan(FACTS)} == {"middle"}
    assert {step.proportional for step in ToMe().plan(FACTS)} == {True}
    assert {step.proportional for step in ToMe(proportional=False).plan(FACTS)} == {False}


@pytest.mark.parametrize(
    ("parameters", "policy"),
    [
        ({}, "keep"),
        ({"positions": "renumber"}, "renumber"),
        ({"output_order": "reference"}, "renumber"),
    ],
    ids=str,
)
def test_position_ids_follow_the_output_order(parameters, policy) -> None:
    x = random(1, 9, 4)
    assert ToMe(r=2, **parameters).reduce(shown(x, x, 2, 1)).positions == policy


def vit(**more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=5, **more
    ).eval()


def test_merging_duplicates_with_proportional_attention_changes_nothing() -> None:
    """An image of two kinds of patches, without position embeddings: all merge within their kind, exactly."""
    model = vit(pos_embed="none", class_token=False, global_pool="avg")
    patch = random(2, 3, 4, 4)[torch.arange(64) // 4 % 2]
    image = patch.reshape(8, 8, 3, 4, 4).permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)
    with torch.no_grad():
        bare = model(image)
        with tr.wrapped(model, "tome", r=[32, 15]):
            torch.testing.assert_close(model(image), bare, rtol=1e-4, atol=1e-5)
            assert tr.report(model).tokens_kept == [[17]]
        with tr.wrapped(model, "tome", r=[32, 15], proportional=False):
            assert not torch.allclose(model(image), bare, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"keep": 0}, ValueError, "keep=0 tokens per image; allowed: an int >= 1"),
        ({"keep": 1.5}, ValueError, r"keep=1.5 is outside \(0, 1\]"),
        ({"keep": 0.5, "r": 8}, ValueError, "keep=0.5 and r=8 both set the number of tokens; give one"),
        ({"r": -1}, TypeError, "r=-1; allowed: an int >= 0"),
        ({"r": 2.5}, TypeError, "r=2.5; allowed: an int >= 0"),
        ({"r": True}, TypeError, "r=True; allowed: an int >= 0"),
        ({"r": "8"}, TypeError, "r='8'; allowed: an int >= 0"),
        ({"r": [8, -1.0]}, ValueError, r"r=\[8, -1.0\]; allowed in a list: ints >= 0.*A pair is a tuple"),
        ({"r": (8, 1.5)}, ValueError, r"inflection\)=1.5 is outside \[-1, 1\]"),
        ({"r": (8, 1, 2)}, TypeError, r"r=\(8, 1, 2\); allowed"),
        ({"r": 8, "inflection": 0.5}, ValueError, r"inflection=0.5 belongs to keep; with r give the pair"),
        ({"inflection": 2}, ValueError, r"inflection=2 is outside \[-1, 1\]"),
        ({"output_order": "random"}, ValueError, "output_order='random'; allowed: 'raster', 'reference'"),
        ({"positions": "original"}, ValueError, "positions='original'; allowed: 'keep', 'renumber'"),
        ({"ratio": 0.5}, TypeError, "tome has no parameter 'ratio'"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters, kind, words) -> None:
    with pytest.raises(kind, match=words):
        make("tome", **parameters)


def test_a_number_per_block_needs_no_number_of_patches() -> None:
    unknown = dataclasses.replace(FACTS, tower_grid=None)
    assert [step.amount for step in ToMe(r=8).plan(unknown)] == [8] * 23
