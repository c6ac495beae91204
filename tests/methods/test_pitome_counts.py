"""How many tokens PiToMe leaves, per block and in all."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pitome_tokens import shown, sizes
from standins import FACTS, alone, random

from tokenreduce.energy_merging import PRESETS, Merge, merges, spread_by_share
from tokenreduce.methods.pitome import PiToMe
from tokenreduce.model_facts import ModelFacts


def left(facts: ModelFacts, method: PiToMe, rows: int | None = None) -> int:
    """Patches that leave the tower, from the plan and the counting rule alone."""
    n = math.prod(facts.tower_grid or ()) if rows is None else rows
    for step in method.plan(facts):
        how = step.amount
        assert isinstance(how, Merge)
        n -= merges(n, how, min(facts.tower_prefix, 1), how.matching) if how < 1 else int(how)
    return n


@pytest.mark.parametrize(
    ("rho", "patches"), [(0.975, 330), (0.95, 183), (0.925, 101), (0.9, 54), (0.875, 30), (0.85, 17)]
)
def test_counts_of_the_released_llava_wiring(rho, patches) -> None:
    assert left(FACTS, PiToMe(rho=rho)) == patches
    steps = PiToMe(keep=patches).plan(FACTS)
    assert len(steps) == 23
    assert left(FACTS, PiToMe(keep=patches)) == patches
    # nearly the same rho is found again
    n = 576
    for step in steps:
        assert abs(step.amount - merges(n, rho, 1, step.amount.matching)) <= 2
        n -= int(step.amount)


@pytest.mark.parametrize(("rho", "patches"), [(0.975, 388), (0.95, 199), (0.925, 102), (0.9, 52)])
def test_counts_of_a_siglip_tower(rho, patches) -> None:
    facts = dataclasses.replace(FACTS, tower_depth=26, feature_block=25, tower_prefix=0, tower_grid=(27, 27))
    assert left(facts, PiToMe(rho=rho)) == patches


@pytest.mark.parametrize(("rho", "rows"), [(0.975, 151), (0.95, 111), (0.925, 82), (0.9, 60)])
def test_counts_of_a_vit(rho, rows) -> None:
    assert 1 + left(alone(196, depth=12), PiToMe(rho=rho)) == rows


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("preset", PRESETS)
def test_counts_are_exact_for_every_size(preset, prefix) -> None:
    for n in range(1, 301, 3 if (preset, prefix) == ("llava", 1) else 37):
        for keep in (1, n // 3 or 1, n - 1 or 1, n, 0.1, 0.5, 1.0):
            wanted = keep if isinstance(keep, int) else max(1, round(keep * n))
            assert left(alone(n, 9, prefix), PiToMe(keep=keep, preset=preset)) == wanted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 200), part=st.floats(0, 1), depth=st.integers(1, 12), cls=st.integers(0, 1))
def test_the_share_is_the_best_one(n, part, depth, cls) -> None:
    """No share on a fine grid leaves fewer patches, but at least K, than the one that was found."""
    k = max(math.ceil(n / 2**depth), round(part * n))
    matchings = ["bsm"] * (depth // 2) + ["energy"] * (depth - depth // 2)
    counts = spread_by_share(n, k, cls, matchings)
    assert sum(counts) == n - k

    def simulate(share: float) -> list[int]:
        now, found = n, []
        for matching in matchings:
            found.append(merges(now, share, cls, matching))
            now -= found[-1]
        return found

    tried = [simulate(share) for share in torch.linspace(0.45, 1, 400).tolist()]
    best = max((c for c in tried if n - sum(c) >= k), key=sum)
    if sum(best) == n - k:
        assert sum(counts[:-1]) == sum(best[:-1])
    assert min(counts) >= 0


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=st.integers(1, 150), part=st.floats(0, 1), prefix=st.integers(0, 5), seed=st.integers(0, 9))
def test_a_tower_ends_with_the_count(preset, n, part, prefix, seed) -> None:
    k = max(math.ceil(n / 16), round(part * n))
    method = PiToMe(keep=k, preset=preset)
    x = random(2, prefix + n, 4, seed=seed)
    size = torch.ones(x.shape[:2])
    for step in method.plan(alone(n, 4, prefix)):
        keys = dict.fromkeys(step.needs, x)
        tokens = dataclasses.replace(shown(x, step.amount, prefix, size=size), layer=step.layer, signals=keys)
        plan = method.reduce(tokens).check(tokens)
        x, size = plan.carry(x), sizes(plan, size)
    assert x.shape[1] == prefix + k
    assert size.sum(dim=1).tolist() == [prefix + n] * 2


def test_the_count_is_rounded_as_written() -> None:
    assert merges(10, 0.9, 0, "energy") == math.floor(10 - 10 * 0.9)
    assert merges(100, 0.93, 0, "energy") == math.floor(100 - 100 * 0.93) != round(100 * (1 - 0.93)) + 1
    assert merges(19, 0.95, 1, "bsm") == 1
    assert merges(19, 0.95, 1, "energy") == 0
    assert merges(10, 0.2, 0, "energy") == 5


def test_shares_are_counted_when_tokens_are_seen() -> None:
    facts = dataclasses.replace(FACTS, tower_grid=None)
    (step, *_) = PiToMe(rho=0.9, preset="keys").plan(facts)
    for n in (10, 31, 64):
        x = random(1, 1 + n, 4)
        assert PiToMe(rho=0.9).reduce(shown(x, step.amount, 1, x)).num_kept == 1 + n - math.floor(n - n * 0.9)
    x = random(1, 1 + 5, 4)
    few = PiToMe(rho=0.9).reduce(shown(x, step.amount, 1, x))
    assert torch.equal(few.carry(x), x)


def test_shares_and_counts_per_block() -> None:
    assert [float(s.amount) for s in PiToMe(rho=[1.0, 0.9, 1, 0.8]).plan(FACTS)] == [0.9, 0.8]
    assert [s.layer for s in PiToMe(rho=[1.0, 0.9, 1, 0.8]).plan(FACTS)] == [1, 3]
    assert [(s.layer, s.amount) for s in PiToMe(r=[0, 7]).plan(FACTS)] == [(1, 7)]
    assert [s.layer for s in PiToMe(r=3).plan(FACTS)] == list(range(23))


def test_nothing_to_merge_attaches_nothing() -> None:
    for method in (
        PiToMe(keep=1.0),
        PiToMe(keep=576),
        PiToMe(rho=1.0),
        PiToMe(rho=[1, 1.0]),
        PiToMe(r=0),
        PiToMe(r=[]),
    ):
        assert method.plan(FACTS) == ()
        assert method.is_identity(576)
    for method in (PiToMe(), PiToMe(keep=64), PiToMe(rho=0.9), PiToMe(rho=[1, 0.9]), PiToMe(r=1)):
        assert method.plan(FACTS)
        assert not method.is_identity(576)
