"""Energy matching against the recipe of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pitome_tokens import shown, sizes
from standins import random
from torch import Tensor

from tokenreduce.energy_merging import Merge
from tokenreduce.matching import MATCHINGS, Pairs, by_energy, match, match_energy, match_energy_bsm, match_text
from tokenreduce.methods.pitome import PiToMe


def paired(metric: Tensor, r: int, matching: str, prefix: int = 0, margin: float = 0.5) -> Pairs:
    if matching == "bsm":
        return match(metric, r, prefix)
    return (match_energy if matching == "energy" else match_energy_bsm)(metric, r, margin, 1.0, prefix)


def recipe(metric: Tensor, r: int, margin: float, alpha: float, prefix: int) -> tuple[list[int], list[int]]:
    """Energy matching by hand for one image: anchors of the output rows, and the row of every token."""
    unit = (metric.double() / metric.double().norm(dim=-1, keepdim=True)).tolist()
    patches = range(prefix, len(unit))
    cosine = {(i, j): sum(x * y for x, y in zip(unit[i], unit[j])) for i in patches for j in patches}

    def f(w: float) -> float:
        return w - margin if w > margin else alpha * math.expm1(w - margin)

    energy = {i: sum(f(cosine[i, j]) for j in patches) / len(patches) for i in patches}
    order = sorted(patches, key=lambda i: (-energy[i], i))
    a, b, protected = order[0 : 2 * r : 2], order[1 : 2 * r : 2], order[2 * r :]
    joined = {i: max(b, key=lambda j, i=i: cosine[i, j]) for i in a}
    anchors = [*range(prefix), *protected, *b]
    place = {row: k for k, row in enumerate(anchors)}
    return anchors, [place[joined.get(i, i)] for i in range(len(unit))]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    patches=st.integers(3, 30),  # of two, the energies tie
    part=st.floats(0, 1),
    margin=st.floats(0, 0.9),
    alpha=st.floats(0.1, 2),
    seed=st.integers(0, 999),
)
def test_energy_matching_is_the_recipe(prefix, patches, part, margin, alpha, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    metric = random(2, prefix + patches, 6, seed=seed)
    plan = match_energy(metric, r, margin, alpha, prefix).merge(prefix)
    for b in range(2):
        anchors, assign = recipe(metric[b], r, margin, alpha, prefix)
        assert plan.source[b].tolist() == anchors
        assert plan.assign[b].tolist() == assign


def clusters(*members: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """(1, N, C): clusters of the given sizes around orthogonal centres."""
    centres = torch.eye(len(members)).repeat_interleave(torch.tensor(members), dim=0)[None]
    return centres + noise * random(*centres.shape, seed=seed)


def test_only_large_clusters_merge() -> None:
    pairs = match_energy(clusters(1, 6, 1, 2), r=3, margin=0.5)
    assert sorted([*pairs.leaving[0].tolist(), *pairs.hubs[0].tolist()]) == [1, 2, 3, 4, 5, 6]
    assert pairs.alone.tolist() == [[8, 9, 0, 7]]  # the pair before the isolated ones, falling energy


def test_the_text_variant_splits_candidates_in_halves() -> None:
    metric = clusters(4, 3, 1, noise=0.05)
    energetic = match_text(metric, r=2, margin=0.5)
    assert sorted([*energetic.leaving[0].tolist(), *energetic.hubs[0].tolist()]) == [0, 1, 2, 3]
    assert torch.equal(
        match_text(torch.cat([torch.ones(1, 2, 3), metric], dim=1), 2, 0.5, prefix=2).hubs, energetic.hubs + 2
    )


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(patches=st.integers(2, 60), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_mass_is_conserved_and_nothing_is_dropped(matching, prefix, patches, part, seed) -> None:
    r = max(1, round(part * (patches // 2)))
    x, keys = random(3, prefix + patches, 5, seed=seed), random(3, prefix + patches, 4, seed=seed + 1)
    size = torch.randint(1, 9, x.shape[:2], generator=torch.Generator().manual_seed(seed)).float()
    for weighted in (True, False):
        tokens = shown(x, Merge(r, matching, 0.5, weighted), prefix, keys, size)
        plan = PiToMe(r=r).reduce(tokens).check(tokens)
        assert plan.num_kept == prefix + patches - r
        assert (plan.assign >= 0).all()
        weight = size if weighted else torch.ones_like(size)
        merged, after = plan.carry(x), sizes(plan, weight)
        torch.testing.assert_close(
            (merged * after[..., None]).sum(dim=1), (x * weight[..., None]).sum(dim=1), rtol=1e-5, atol=1e-4
        )
        assert torch.equal(sizes(plan, size).sum(dim=1), size.sum(dim=1))
        assert torch.equal(plan.assign.gather(1, plan.source), torch.arange(plan.num_kept).expand_as(plan.source))
        assert torch.equal(plan.source[:, :prefix], torch.arange(prefix).expand(3, -1))
        assert (plan.assign[:, prefix:] >= prefix).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(patches=st.integers(2, 40), seed=st.integers(0, 99))
def test_prune_drops_what_would_have_merged(patches, seed) -> None:
    r = patches // 2
    x = random(2, 1 + patches, 5, seed=seed)
    tokens = shown(x, Merge(r), 1)
    merged, pruned = (PiToMe(r=r, prune=p).reduce(tokens).check(tokens) for p in (False, True))
    assert torch.equal(pruned.source, merged.source)
    assert (pruned.assign < 0).sum(dim=1).tolist() == [r, r]
    assert torch.equal(pruned.assign.clamp_min(-1), torch.where(pruned.assign < 0, -1, merged.assign))
    assert torch.equal(pruned.carry(x), x.gather(1, pruned.source[..., None].expand(-1, -1, 5)))


def groups(pairs: Pairs, order: Tensor) -> set[frozenset[int]]:
    """Groups of one image, in the numbering that ``order`` (N,) maps to."""
    assign = pairs.merge(0).assign[0]
    return {frozenset(order[assign == row].tolist()) for row in assign.unique()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(4, 60), seed=st.integers(0, 99))
def test_energy_does_not_depend_on_the_order_of_the_tokens(n, seed) -> None:
    metric = random(1, n, 6, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for matching in ("energy", "energy_bsm"):
        moved = groups(paired(metric[:, order], n // 3 or 1, matching), order)
        assert moved == groups(paired(metric, n // 3 or 1, matching), torch.arange(n))


def test_plain_matching_depends_on_the_order_of_the_tokens() -> None:
    metric, order = random(1, 40, 6), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert groups(paired(metric[:, order], 10, "bsm"), order) != groups(paired(metric, 10, "bsm"), torch.arange(40))


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_batch_equals_its_images(matching, prefix) -> None:
    metric = random(4, prefix + 51, 16)
    metric[:, -20:] = metric[:, -40:-20]  # exact ties, too
    together = paired(metric, 13, matching, prefix)
    for b in range(4):
        for one, all_ in zip(paired(metric[b : b + 1], 13, matching, prefix), together):
            assert torch.equal(one[0], all_[b])


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_decides_like_float32_on_the_same_numbers(dtype, matching) -> None:
    """576 clustered tokens, whose energies differ by less than half precision can tell."""
    centres = random(1, 12, 64)[:, torch.arange(576) % 12]
    x = (centres + 0.1 * random(1, 576, 64, seed=1)).to(dtype)
    amount = Merge(57, matching, 0.9)
    half, full = (PiToMe(r=57).reduce(shown(y, amount, 0)) for y in (x, x.float()))
    assert torch.equal(half.assign, full.assign)
    assert torch.equal(half.carry(x), full.carry(x.float()).to(dtype))


@pytest.mark.parametrize("rows", ["constant", "zero"])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_ties_go_to_the_lowest_index(rows, prefix) -> None:
    metric = torch.full((2, prefix + 12, 4), 0.5 if rows == "constant" else 0.0)
    pairs = match_energy(metric, 3, 0.5, prefix=prefix)
    assert (pairs.leaving - prefix).tolist() == [[0, 2, 4]] * 2
    assert (pairs.hubs - prefix).tolist() == [[1, 3, 5]] * 2
    assert (pairs.joined - prefix).tolist() == [[1, 1, 1]] * 2
    assert (pairs.alone - prefix).tolist() == [list(range(6, 12))] * 2
    sorted_pairs = match_energy_bsm(metric, 3, 0.5, prefix=prefix)
    assert (sorted_pairs.leaving - prefix).tolist() == [[0, 2, 4]] * 2


def test_sizes_weigh_the_mean_where_asked() -> None:
    x = torch.tensor([[[1.0], [4.0]]])
    size = torch.tensor([[1.0, 2.0]])
    for weighted, mean in ((True, 3.0), (False, 2.5)):
        plan = PiToMe(r=1).reduce(shown(x, Merge(1, weighted=weighted), 0, torch.ones(1, 2, 3), size))
        assert plan.carry(x).item() == mean


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(2, 30), st.integers(0, 99))
def test_energy_in_windows_pairs_ranks_of_one_window(windows, n, seed):
    """Pairs of neighbouring ranks are of one window and come by the energy of the first; who has no second comes last."""
    generator = torch.Generator().manual_seed(seed)
    metric, window = torch.randn(1, n, 6, generator=generator), torch.randint(windows, (1, n), generator=generator)
    order = by_energy(metric, 0.3, window=window)[0].tolist()
    rank = {row: i for i, row in enumerate(by_energy(metric, 0.3)[0].tolist())}
    of = window[0].tolist()
    pairs, lone = [], []
    for w in sorted(set(of)):
        own = sorted((row for row in range(n) if of[row] == w), key=rank.get)
        pairs += list(zip(own[::2], own[1::2], strict=False))
        lone += own[len(own) // 2 * 2 :]
    pairs.sort(key=lambda pair: rank[pair[0]])
    assert sorted(order) == list(range(n))
    assert order[: 2 * len(pairs)] == [row for pair in pairs for row in pair]
    assert set(order[2 * len(pairs) :]) == set(lone)


def test_candidates_of_a_windowed_block_join_within_their_window():
    generator = torch.Generator().manual_seed(0)
    metric, window = torch.randn(2, 40, 6, generator=generator), torch.randint(6, (2, 40), generator=generator)
    for pairing in (match_energy, match_energy_bsm):
        pairs = pairing(metric, 10, 0.3, window=window)
        assert torch.equal(window.gather(1, pairs.leaving), window.gather(1, pairs.joined))
