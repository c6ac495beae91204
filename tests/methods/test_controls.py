"""The controls Random, Uniform and Pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import FACTS, shown

from tokenreduce.layout import Layout
from tokenreduce.methods.pool import Pool
from tokenreduce.methods.random import Random
from tokenreduce.methods.uniform import Uniform
from tokenreduce.signals import (
    ImageFingerprint,
)
from tokenreduce.tokens import VisualTokens


def drawn(fingerprint: list[int], n: int = 40, keep: int = 10, seed: int = 0, **more: Any) -> list[list[int]]:
    method = Random(keep=keep, seed=seed)
    (step,) = method.plan(FACTS)
    tokens = shown(step, n, len(fingerprint), **more)
    tokens.signals = {ImageFingerprint(): torch.tensor(fingerprint)}
    return method.reduce(tokens).source.tolist()


def test_random_depends_on_fingerprint_and_seed_only() -> None:
    a, b, c = 12345, -99, 7
    first = drawn([a, b, c])
    assert len({tuple(row) for row in first}) == 3
    torch.manual_seed(1234)
    assert drawn([c, a, a, b], seed=0) == [first[2], first[0], first[0], first[1]]
    (step,) = Random().plan(FACTS)
    other_features = Random(keep=10).reduce(
        VisualTokens(
            features=torch.ones(1, 40, 1),
            layout=Layout(40, 1),
            stage=step.stage,
            signals={ImageFingerprint(): torch.tensor([a])},
        )
    )
    assert other_features.source.tolist() == first[:1]
    assert all(x != y for x, y in zip(first, drawn([a, b, c], seed=1)))


def test_random_is_nested_and_even() -> None:
    few, many = drawn([5, 6], keep=4), drawn([5, 6], keep=20)
    assert all(set(x) < set(y) for x, y in zip(few, many))
    # 3000 draws of 10 from 40: each token 750 times, give or take 24
    rows = torch.tensor(drawn(list(range(3000))))
    assert (rows.flatten().bincount(minlength=40) - 750).abs().max() < 120


def test_uniform_takes_the_middle_of_even_regions() -> None:
    (step,) = Uniform().plan(FACTS)
    plan = Uniform(keep=4).reduce(shown(step, 36, layout=Layout(6, 6)))
    assert plan.source.tolist() == [[7, 10, 25, 28]] * 2
    video = Uniform(keep=4).reduce(shown(step, 36, layout=Layout(3, 3, frames=4)))
    assert sorted(j // 9 for j in video.source[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 12), width=st.integers(1, 12), part=st.floats(0, 1), seed=st.integers(0, 99))
def test_pool_gives_region_means_and_conserves_mass(dtype, height, width, part, seed) -> None:
    n = height * width
    k, layout = max(1, round(part * n)), Layout(height, width)
    method = Pool(keep=k)
    (step,) = method.plan(FACTS)
    tokens = shown(step, n, seed=seed, layout=layout)
    tokens.features = tokens.features.to(dtype)
    plan = method.reduce(tokens).check(tokens)
    pooled = plan.carry(tokens.features)
    assert pooled.dtype == dtype
    assert (plan.assign >= 0).all()
    sizes = torch.stack([row.bincount(minlength=k) for row in plan.assign])
    means = torch.stack(
        [
            torch.stack([tokens.features[b].double()[plan.assign[b] == r].mean(dim=0) for r in range(k)])
            for b in range(2)
        ]
    )
    # sums run in float32 (6e-8 a step); the result is rounded to the dtype of the features once (2^-9 for bfloat16)
    close = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    torch.testing.assert_close(pooled.double(), means, rtol=close, atol=1e-5)
    mass = (pooled.double() * sizes[..., None]).sum(dim=1)
    torch.testing.assert_close(mass, tokens.features.double().sum(dim=1), rtol=0, atol=close * n)


def test_pool_of_all_tokens_changes_nothing() -> None:
    method = Pool(keep=1.0)
    tokens = shown(method.plan(FACTS)[0], 30)
    assert torch.equal(method.reduce(tokens).carry(tokens.features), tokens.features)


def test_pool_counts_a_merged_token_by_its_size() -> None:
    """Pooling what an earlier stage merged gives the mean of the original tokens."""
    method = Pool(keep=1)
    tokens = shown(method.plan(FACTS)[0], 4)
    tokens.size = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 7.0]])
    expected = (tokens.features * tokens.size[..., None]).sum(dim=1, keepdim=True) / 10
    torch.testing.assert_close(method.reduce(tokens).carry(tokens.features), expected, rtol=1e-5, atol=1e-6)
