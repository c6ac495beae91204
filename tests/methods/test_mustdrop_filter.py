"""The filter of MustDrop inside the language model, and the schedule of its lengths."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mustdrop_steps import facts, step_of
from standins import FACTS
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.mustdrop import KEY, MustDrop, Route
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import decay, lengths
from tokenreduce.signals import AttentionReceived, ClsAttention, TextAttention
from tokenreduce.text_attention import attended, urgency
from tokenreduce.tokens import VisualTokens


def at_layer(method: MustDrop, layer: int, total: Tensor, most: Tensor, role: Tensor) -> Reduction:
    step = step_of(method, "llm", layer)
    tokens = VisualTokens(
        torch.zeros(*total.shape, 1),
        Layout(24, 24),
        step.stage,
        step.layer,
        role=role,
        signals=dict(zip(step.needs, (total, most))),
        amount=step.amount,
    )
    return method.reduce(tokens).check(tokens)


def text_attention(batch: int, n: int, rows: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(batch, rows, n, generator=generator).mul(2).softmax(dim=-1)
    return attention.sum(dim=1), attention.amax(dim=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40),
    theta_g=st.sampled_from([0.001, 0.02, 0.1, 1.0]),
    theta_i=st.sampled_from([0.001, 0.05, 0.3, 1.0]),
    keys=st.sets(st.integers(0, 39), min_size=1),
    seed=st.integers(0, 99),
)
def test_the_filter_equals_its_description(n, theta_g, theta_i, keys, seed) -> None:
    total, most = text_attention(3, n, seed=seed)
    role = torch.zeros(3, n, dtype=torch.long)
    role[:, sorted({j % n for j in keys})] = KEY
    method = MustDrop(keep=192, mode="threshold", global_threshold=theta_g, individual_threshold=theta_i)
    plan = at_layer(method, 3, total, most, role)
    assert plan.valid is not None
    for b in range(3):
        everything = float(total[b].sum())
        kept = [
            j
            for j in range(n)
            if role[b, j] == KEY or not (total[b, j] < theta_g * everything and most[b, j] < theta_i)
        ]
        assert plan.source[b, plan.valid[b]].tolist() == kept
        assert (plan.assign[b] >= 0).nonzero().flatten().tolist() == kept
        alone = at_layer(method, 3, total[b : b + 1], most[b : b + 1], role[b : b + 1])
        assert alone.source.tolist() == [kept]
    # being discarded is the same as an urgency below 1, up to rounding on the threshold itself
    urgent, kept = urgency(total, most, theta_g, theta_i), attended(total, most, theta_g, theta_i)
    clear = (urgent - 1).abs() > 1e-5
    assert torch.equal((urgent >= 1)[clear], kept[clear])


def test_keys_stay_when_the_text_looks_away() -> None:
    method = MustDrop(keep=192, mode="threshold", global_threshold=1.0, individual_threshold=1.0)
    role = torch.zeros(1, 9, dtype=torch.long)
    role[0, [2, 7]] = KEY
    for value in (torch.zeros(1, 9), torch.full((1, 9), 1e-9)):
        # a share of nothing is at least a share of nothing: only a row of zeros keeps all
        plan = at_layer(method, 3, value, value, role)
        assert plan.source.tolist() == [list(range(9)) if value.sum() == 0 else [2, 7]]
    assert Reduction.where(role == KEY).source.tolist() == [[2, 7]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(16, 576), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_budgets_are_filled_exactly_at_every_layer(keep, batch, seed) -> None:
    method = MustDrop(keep=keep)
    planned = method.schedule(576, Route(32, True))
    n, role = planned[0], torch.zeros(batch, planned[0], dtype=torch.long)
    role[:, :: max(1, n // max(1, planned[-1] // 2))][:, : planned[-1]] = KEY
    if keep == 576:
        return
    for layer, k in zip((3, 7, 11, 15), planned[1:]):
        total, most = text_attention(batch, n, seed=seed + layer)
        plan = at_layer(method, layer, total, most, role)
        assert plan.valid is None
        assert plan.num_kept == k
        assert (plan.assign[role == KEY] >= 0).all()
        score = urgency(total, most, *method._thresholds(keep / 576)).masked_fill(role == KEY, torch.inf)
        for b in range(batch):
            best = sorted(range(n), key=lambda j: (-float(score[b, j]), j))[:k]
            assert plan.source[b].tolist() == sorted(best)
        n, role = k, role.gather(1, plan.source)


def test_equal_scores_go_to_the_lowest_index() -> None:
    method = MustDrop(keep=192)
    n = method.schedule(576, Route(32, True))[0]
    flat = torch.full((1, n), 1 / n)
    plan = at_layer(method, 3, flat, flat, torch.zeros(1, n, dtype=torch.long))
    assert torch.equal(plan.source[0], torch.arange(plan.num_kept))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    first=st.integers(1, 600),
    share=st.floats(0.05, 1),
    runs=st.sampled_from([[2, 4, 4, 4, 18], [1, 2, 2, 2, 25], [0, 1, 1, 3], [5, 1]]),
)
def test_lengths_fall_geometrically_to_the_average(first, share, runs) -> None:
    least = (first * runs[0] + sum(runs[1:])) / sum(runs)
    goal = least + share * (first - least)
    found = lengths(first, goal, runs)
    assert found[0] == first
    assert all(b <= a for a, b in pairwise(found))
    assert found[-1] >= 1
    average = sum(run * n for run, n in zip(runs, found)) / sum(runs)
    assert abs(average - goal) * sum(runs) <= max(runs[1:]) / 2 + 1e-6
    q = decay(first, goal, runs)
    assert all(abs(n - max(1, first * q**i)) <= max(2.0, sum(runs) / 4) for i, n in enumerate(found))


def test_published_budgets() -> None:
    for keep, known in ((192, 1 / 3), (128, 2 / 9), (64, 1 / 9)):
        by_count, by_share = MustDrop(keep=keep), MustDrop(keep=known)
        found = by_count.schedule(576, Route(32, True))
        assert found == by_share.schedule(576, Route(32, True))
        assert sum(run * n for run, n in zip((2, 4, 4, 4, 18), found)) == keep * 32
        threshold = MustDrop(keep=keep, mode="threshold")._thresholds(None)
        assert threshold == MustDrop(keep=known, mode="threshold")._thresholds(None)
    assert MustDrop(keep=64, mode="threshold")._thresholds(None) == (0.011, 0.01)
    assert MustDrop(keep=0.12)._thresholds(0.12) == (0.011, 0.01)


def test_layers_scale_to_the_depth() -> None:
    assert MustDrop().pruning_layers(32) == (2, 6, 10, 14)
    assert MustDrop().pruning_layers(40) == (2, 8, 12, 18)
    assert MustDrop().pruning_layers(2) == (0,)
    assert MustDrop(layers=(1, 3)).pruning_layers(5) == (1, 3)


def test_it_asks_for_what_it_describes() -> None:
    found = MustDrop().plan(FACTS)
    assert [(s.stage, s.layer) for s in found] == [
        ("encoder", 0),
        ("projector", None),
        *(("llm", layer) for layer in (3, 7, 11, 15)),
        ("cache", 2),
    ]
    assert found[0].when == "after"
    assert not found[0].proportional
    assert found[1].needs == (ClsAttention(23),)
    assert found[3].needs == (TextAttention(6, "sum"), TextAttention(6, "max"))
    assert MustDrop(score="global_mean").plan(facts(has_cls=False))[1].needs == (AttentionReceived(23),)
    assert MustDrop().plan(facts(has_cls=False)) == MustDrop(score="global_mean").plan(facts(has_cls=False))
    pooled = facts(stages=("projector", "llm"))
    assert [s.stage for s in MustDrop().plan(pooled)] == ["projector", *["llm"] * 4]
    assert [
        clause.split(":")[0] for clause in MustDrop().substitutes(facts(stages=("projector", "llm"), has_cls=False))
    ] == [
        "attention received from all tokens in place of [CLS] attention",
        "no merging of windows",
        "no trimming of the cache",
    ]
    assert MustDrop().substitutes(FACTS) == ()
    assert [s.stage for s in MustDrop(merge=False, trim_cache=False).plan(FACTS)] == ["projector", *["llm"] * 4]
