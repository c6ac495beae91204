"""Bipartite soft matching against the recipe of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import random
from tome_tokens import shown, sizes

from tokenreduce.matching import match, unmerge
from tokenreduce.methods.tome import ToMe


def recipe(metric: list[list[float]], r: int, prefix: int) -> tuple[list[int], list[int]]:
    """Section 3 by hand for one image, [CLS] and distillation token included in the split: anchors and assignment."""
    n = len(metric)
    a, b = list(range(0, n, 2)), list(range(1, n, 2))

    def cosine(i: int, j: int) -> float:
        return sum(x * y for x, y in zip(metric[i], metric[j])) / math.hypot(*metric[i]) / math.hypot(*metric[j])

    best = {}
    for i in a:
        if not (prefix and i == 0):
            best[i] = max((cosine(i, j), -j) for j in b if not (prefix == 2 and j == 1))
    order = sorted(best, key=lambda i: (-best[i][0], i))
    joined = {i: -best[i][1] for i in order[:r]}
    kept = ([0] if prefix else []) + order[r:]
    kept = sorted(kept) if prefix else kept
    anchors = [*kept[:1], *b[:1], *kept[1:], *b[1:]] if prefix == 2 else [*kept, *b]
    place = {row: k for k, row in enumerate(anchors)}
    return anchors, [place[joined.get(i, i)] for i in range(n)]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(patches=st.integers(2, 40), part=st.floats(0, 1), seed=st.integers(0, 999))
def test_matching_is_the_recipe(prefix, patches, part, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    keys = random(2, prefix + patches, 6, seed=seed)
    plan = ToMe(r=r).reduce(shown(keys, keys, r, prefix))
    for b in range(2):
        anchors, assign = recipe(keys[b].double().tolist(), r, prefix)
        assert plan.source[b].tolist() == anchors
        assert plan.assign[b].tolist() == assign


def test_registers_stay_in_front_and_only_patches_match() -> None:
    keys = random(2, 5 + 12, 6)
    plan = ToMe(r=4).reduce(shown(keys, keys, 4, prefix=5))
    bare = ToMe(r=4).reduce(shown(keys[:, 5:], keys[:, 5:], 4, prefix=0))
    assert plan.source[:, :5].tolist() == [list(range(5))] * 2
    assert torch.equal(plan.source[:, 5:].sort().values, bare.source.sort().values + 5)
    assert torch.equal(plan.source.gather(1, plan.assign)[:, 5:], bare.source.gather(1, bare.assign) + 5)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(patches=st.integers(2, 60), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_mass_is_conserved_and_nothing_is_dropped(prefix, patches, part, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    x, keys = random(3, prefix + patches, 5, seed=seed), random(3, prefix + patches, 4, seed=seed + 1)
    size = torch.randint(1, 9, x.shape[:2], generator=torch.Generator().manual_seed(seed)).float()
    tokens = shown(x, keys, r, prefix, size)
    plan = ToMe(r=r).reduce(tokens).check(tokens)
    assert plan.num_kept == prefix + patches - r
    assert plan.merges
    assert (plan.assign >= 0).all()
    merged, after = plan.carry(x), sizes(plan, size)
    assert torch.equal(after.sum(dim=1), size.sum(dim=1))
    torch.testing.assert_close(
        (merged * after[..., None]).sum(dim=1), (x * size[..., None]).sum(dim=1), rtol=1e-5, atol=1e-4
    )
    # every row sits at one of its own tokens; prefix rows are alone and untouched
    assert torch.equal(plan.assign.gather(1, plan.source), torch.arange(plan.num_kept).expand_as(plan.source))
    assert torch.equal(plan.source[:, :prefix], torch.arange(prefix).expand(3, -1))
    assert (plan.assign[:, prefix:] >= prefix).all()
    torch.testing.assert_close(merged[:, :prefix], x[:, :prefix])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(prefix=st.integers(0, 5), patches=st.integers(2, 40), seed=st.integers(0, 99))
def test_unmerge_gives_every_place_its_row(prefix, patches, seed) -> None:
    x = random(2, prefix + patches, 5, seed=seed)
    r = patches // 2
    plan = ToMe(r=r).reduce(shown(x, x, r, prefix))
    merged = plan.carry(x)
    back = unmerge(merged, plan.assign)
    for b in range(2):
        for n in range(prefix + patches):
            assert torch.equal(back[b, n], merged[b, plan.assign[b, n]])
    dropped = plan.assign.clone()
    dropped[:, -1] = -1
    assert not unmerge(merged, dropped)[:, -1].any()


def test_a_block_merges_at_most_half() -> None:
    for prefix, patches in ((0, 9), (1, 9), (2, 8), (1, 1), (0, 1), (4, 0)):
        x = random(1, prefix + patches, 4)
        tokens = shown(x, x, 100, prefix)
        plan = ToMe(r=100).reduce(tokens).check(tokens)
        assert plan.num_kept == prefix + patches - patches // 2
        if patches < 2:
            assert torch.equal(plan.carry(x), x)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_batch_equals_its_images(prefix) -> None:
    x, keys = random(4, prefix + 51, 8), random(4, prefix + 51, 16, seed=1)
    together = ToMe(r=13).reduce(shown(x, keys, 13, prefix))
    for b in range(4):
        plan = ToMe(r=13).reduce(shown(x[b : b + 1], keys[b : b + 1], 13, prefix))
        assert torch.equal(plan.assign[0], together.assign[b])
        assert torch.equal(plan.source[0], together.source[b])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_like_float32_on_the_same_numbers(dtype) -> None:
    """576 clustered tokens, in which half-precision scores would tie in masses."""
    centres = random(1, 12, 64)[:, torch.arange(576) % 12]
    keys = (centres + 0.1 * random(1, 576, 64, seed=1)).to(dtype)
    x = random(1, 576, 8, seed=2).to(dtype)
    half = ToMe(r=100).reduce(shown(x, keys, 100, 0))
    full = ToMe(r=100).reduce(shown(x.float(), keys.float(), 100, 0))
    assert torch.equal(half.assign, full.assign)
    assert half.carry(x).dtype == dtype
    assert torch.equal(half.carry(x), full.carry(x.float()).to(dtype))


@pytest.mark.parametrize("rows", ["constant", "zero"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_ties_go_to_the_lowest_index(rows, prefix) -> None:
    keys = torch.full((2, prefix + 12, 4), 0.5 if rows == "constant" else 0.0)
    pairs = match(keys, 3, prefix)
    a = [i for i in range(prefix + 12) if i % 2 == 0 and i >= prefix]
    b = [i for i in range(prefix + 12) if i % 2 == 1 and i >= prefix]
    assert pairs.leaving.tolist() == [a[:3]] * 2
    assert pairs.joined.tolist() == [[b[0]] * 3] * 2
    assert pairs.score.isfinite().all()


def test_duplicates_merge_first_and_change_nothing() -> None:
    x = random(1, 10, 6).repeat_interleave(2, dim=1)
    pairs = match(x, 10)
    assert torch.equal(pairs.joined, pairs.leaving + 1)
    torch.testing.assert_close(pairs.score, torch.ones(1, 10), rtol=0, atol=1e-6)
    torch.testing.assert_close(pairs.merge(0).carry(x), x[:, ::2], rtol=1e-6, atol=1e-6)


def test_groups_depend_on_the_order_of_the_tokens() -> None:
    """The split is by place: two neighbours can merge, the same two on places of equal parity cannot."""
    keys = torch.eye(4)[[0, 0, 1, 2]][None]
    assert match(keys, 1).joined.tolist() == [[1]]
    moved = keys[:, [0, 2, 1, 3]]
    assert match(moved, 1).score.item() < 0.5


def test_sizes_weigh_the_mean() -> None:
    x = torch.tensor([[[1.0], [4.0]]])
    tokens = shown(x, torch.ones(1, 2, 3), 1, 0, size=torch.tensor([[1.0, 2.0]]))
    plan = ToMe(r=1).reduce(tokens)
    assert plan.carry(x).item() == 3.0
    assert plan.source.tolist() == [[1]]
