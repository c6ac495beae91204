"""DivPrune, HoloV, ID-Selection and VTC-CLS against plain loops of their descriptions; the controls by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import FACTS, random
from torch import Tensor

from tokenreduce.allotment import allot
from tokenreduce.kernels.suppressed_selection import suppressed_selection
from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.methods.border import Border
from tokenreduce.methods.divprune import DivPrune
from tokenreduce.methods.first import First
from tokenreduce.methods.holov import HoloV
from tokenreduce.methods.id_selection import IDSelection
from tokenreduce.methods.vtc_cls import VTCCLS
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention
from tokenreduce.tokens import VisualTokens


def plan_of(method: Method, x: Tensor, *values: Tensor, layout: Layout | None = None) -> Reduction:
    (step,) = method.plan(FACTS)
    tokens = VisualTokens(x, layout or Layout(1, x.shape[1]), signals=dict(zip(step.needs, values, strict=True)))
    return method.checked(tokens)


def attention(batch: int, n: int, seed: int = 0) -> Tensor:
    return random(batch, n, seed=seed).mul(2).softmax(dim=1)


# ------------------------------------------------------------------ DivPrune


def farthest_first(x: Tensor, k: int) -> list[int]:
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    distance = 1 - unit @ unit.mT
    n = len(x)
    nearest = [min(float(distance[i, j]) for j in range(n) if j != i) for i in range(n)]
    taken = [max(range(n), key=lambda i: (nearest[i], -i))]
    while len(taken) < k:
        left = [i for i in range(n) if i not in taken]
        taken.append(max(left, key=lambda i: (min(float(distance[i, j]) for j in taken), -i)))
    return taken


def test_divprune_takes_the_farthest_first_in_every_image() -> None:
    x = random(3, 40, 6)
    plan = plan_of(DivPrune(keep=9, output_order="reference"), x)
    loops = [farthest_first(one, 9) for one in x]
    assert plan.source.tolist() == loops
    assert plan.positions == "renumber"
    raster = plan_of(DivPrune(keep=9), x)
    assert raster.source.tolist() == [sorted(loop) for loop in loops]
    assert raster.positions == "keep"
    for one in (plan, raster):
        for b in range(3):
            assert [int(one.source[b, row]) for row in one.assign[b] if row >= 0] == sorted(loops[b])


def test_divprune_never_takes_a_duplicate_twice() -> None:
    x = random(1, 10, 8).repeat(1, 4, 1)
    kept = plan_of(DivPrune(keep=20), x).source[0].tolist()
    assert len(set(kept)) == 20
    assert {i % 10 for i in kept} == set(range(10))


def test_divprune_looks_at_all_tiles_at_once_or_at_each() -> None:
    views = (Layout(2, 3), Layout(2, 3))
    layout = Layout(2, 6, views=views)
    assert [len(own) for _, own in layout.split(DivPrune().sees)] == [12]
    assert [len(own) for _, own in layout.split(DivPrune(scope="view").sees)] == [6, 6]


# ------------------------------------------------------------------ HoloV


def crops_by_hand(x: Tensor, a: Tensor, k: int, crops: int, alpha: float) -> tuple[list[float], list[list[int]]]:
    n = len(x)
    sizes = [n // crops + (p < n % crops) for p in range(crops)]
    runs, first = [], 0
    for size in sizes:
        runs.append(list(range(first, first + size)))
        first += size
    weights = []
    for run in runs:
        m = len(run)
        if m == 1:
            weights.append(float(a[run[0]]))
            continue
        y = [x[i] / (x[i].norm() + 1e-6) for i in run]
        s = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(m)] for i in range(m)]
        mean = [sum(row) / (m - 1) for row in s]
        spread = [sum((v - mean[i]) ** 2 for v in s[i]) / (m - 1) for i in range(m)]
        scaled = [1000 * float(a[i]) for i in run]
        gain = (sum(map(abs, scaled)) / m) / (sum(map(abs, spread)) / m + 1e-6)
        weights.append(sum(v + alpha * gain * w for v, w in zip(scaled, spread)) / m)
    return weights, runs


@pytest.mark.parametrize(("n", "crops", "k"), [(30, 4, 11), (25, 7, 9), (13, 12, 2), (17, 1, 5)])
def test_holov_shares_by_crop_and_keeps_the_most_attended(n, crops, k) -> None:
    x, a = random(2, n, 5).double(), random(2, n).mul(0.2).softmax(dim=1).double()
    plan = plan_of(HoloV(keep=k, crops=crops), x, a)
    for b in range(2):
        weights, runs = crops_by_hand(x[b], a[b], k, crops, 0.09)
        share = [math.floor(w / (sum(weights) + 1e-6) * k) for w in weights]
        for p in sorted(range(crops), key=lambda p: (-weights[p], p))[: k - sum(share)]:
            share[p] += 1
        assert all(count <= len(run) for count, run in zip(share, runs)), "choose a case without overflow"
        kept = [i for run, count in zip(runs, share) for i in sorted(run, key=lambda i: (-float(a[b, i]), i))[:count]]
        assert plan.source[b].tolist() == sorted(kept)


def test_holov_gives_what_a_crop_cannot_hold_to_the_others() -> None:
    x, a = random(1, 24, 5), torch.full((1, 24), 1e-4)
    a[0, :4] = 0.2
    kept = plan_of(HoloV(keep=12, crops=6), x, a).source[0].tolist()
    assert len(kept) == 12
    assert kept[:4] == [0, 1, 2, 3]
    lost = plan_of(HoloV(keep=12, crops=6, overflow="zeros"), x, a)
    assert lost.source[0].tolist() == [0, 1, 2, 3, *[-1] * 8]
    assert lost.features is not None
    assert torch.equal(lost.features[0, :4], x[0, :4])
    assert not lost.features[0, 4:].any()


def test_holov_has_sixteen_crops_at_the_published_budget() -> None:
    x, a = random(1, 576, 4), attention(1, 576)
    assert plan_of(HoloV(keep=64), x, a).source.equal(plan_of(HoloV(keep=64, crops=16), x, a).source)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_budget_is_shared_exactly_and_within_capacity(data) -> None:
    parts = data.draw(st.integers(1, 9))
    capacity = torch.tensor(data.draw(st.lists(st.integers(1, 7), min_size=parts, max_size=parts)))
    weight = torch.tensor([data.draw(st.lists(st.floats(0, 1, width=32), min_size=parts, max_size=parts))])
    k = data.draw(st.integers(1, int(capacity.sum())))
    count = allot(weight, k, capacity)
    assert int(count.sum()) == k
    assert bool((count <= capacity).all() & (count >= 0).all())


def test_a_surplus_goes_to_the_others_in_proportion() -> None:
    weight, capacity = torch.tensor([[5.0, 3.0, 1.0, 1.0]]), torch.tensor([2, 9, 9, 9])
    assert allot(weight, 7).tolist() == [[4, 3, 0, 0]]  # 3.5, 2.1, 0.7, 0.7: two missing, to the largest
    assert allot(weight, 8, capacity).tolist() == [[2, 4, 1, 1]]  # six left for 3 : 1 : 1, one missing


# ------------------------------------------------------------------ ID-Selection


def suppressed(x: Tensor, a: Tensor, k: int, gamma: float, least: float) -> tuple[list[int], list[float]]:
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    score, taken, values = a.double().tolist(), [], []
    for _ in range(k):
        i = max((j for j in range(len(score)) if j not in taken), key=lambda j: (score[j], -j))
        taken.append(i)
        values.append(score[i])
        away = [max(0.0, 1 - float(unit[i] @ unit[j])) for j in range(len(score))]
        score = [max(s - math.exp(-gamma * d * d) * values[-1], least) for s, d in zip(score, away)]
    return taken, values


@pytest.mark.parametrize("n", [30, 1100])
@pytest.mark.parametrize("least", [0.0, -math.inf])
def test_what_is_taken_lowers_its_look_alikes(n, least) -> None:
    x, a = random(2, n, 4), attention(2, n) * 10
    k = min(n, 12)
    taken, value = suppressed_selection(x, a, k, gamma=20.0, least=least)
    for b in range(2):
        loop, scores = suppressed(x[b], a[b], k, 20.0, least)
        assert taken[b].tolist() == loop
        torch.testing.assert_close(value[b], torch.tensor(scores), atol=1e-5, rtol=1e-5)


def test_when_all_scores_are_used_up_the_most_important_follow() -> None:
    x = random(1, 3, 4).repeat_interleave(4, dim=1)  # three kinds of token, four of each
    a = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.35, 0.0]])
    index = plan_of(IDSelection(keep=6, exhausted="index"), x, a).source[0].tolist()
    assert index == [0, 1, 2, 3, 4, 8]
    assert plan_of(IDSelection(keep=6), x, a).source[0].tolist() == [3, 4, 5, 6, 7, 8]


def test_a_factor_changes_nothing_and_equal_scores_are_taken_as_they_are() -> None:
    x, a = random(1, 40, 5), attention(1, 40)
    plans = [plan_of(IDSelection(keep=10), x, a * factor).source for factor in (1, 1000)]
    assert torch.equal(*plans)
    assert plan_of(IDSelection(keep=3), x, torch.full((1, 40), 0.5)).source.shape == (1, 3)


# ------------------------------------------------------------------ VTC-CLS


def test_vtc_cls_sums_the_blocks_up_to_the_features() -> None:
    (step,) = VTCCLS().plan(FACTS)
    assert step.needs == tuple(ClsAttention(block) for block in range(16, 23))
    rows = [attention(2, 20, seed) for seed in range(7)]
    plan = plan_of(VTCCLS(keep=6), random(2, 20, 3), *rows)
    score = sum(rows)
    for b in range(2):
        assert plan.source[b].tolist() == sorted(sorted(range(20), key=lambda i: -float(score[b, i]))[:6])
    assert VTCCLS(start=22).plan(FACTS)[0].needs == (ClsAttention(22),)


def test_vtc_cls_without_cls_reads_blocks_that_see_the_whole_image() -> None:
    windows = replace(FACTS, has_cls=False, tower_depth=32, feature_block=31, full_blocks=(7, 15, 23, 31))
    assert VTCCLS().plan(windows)[0].needs == (AttentionReceived(23), AttentionReceived(31))
    assert VTCCLS(start=24, score="global_mean").plan(replace(windows, full_blocks=(7,)))[0].needs == (
        AttentionReceived(31),
    )


# ------------------------------------------------------------------ controls


def test_controls_keep_the_top_and_the_edge() -> None:
    x = random(2, 20, 3)
    assert plan_of(First(keep=7), x, layout=Layout(4, 5)).source.tolist() == [list(range(7))] * 2
    ring = [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    assert plan_of(Border(keep=14), x, layout=Layout(4, 5)).source.tolist() == [ring] * 2
    assert plan_of(Border(keep=15), x, layout=Layout(4, 5)).source.tolist() == [sorted([*ring, 6])] * 2
    cut = Layout(4, 5, cells=tuple(range(5, 20)))
    assert plan_of(Border(keep=2), x[:, :15], layout=cut).source.tolist() == [[0, 4]] * 2


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("cls", "parameters", "words"),
    [
        (DivPrune, {"scope": "tile"}, ["scope='tile'", "'image', 'view'"]),
        (DivPrune, {"output_order": "greedy"}, ["output_order='greedy'", "'raster', 'reference'"]),
        (HoloV, {"crops": 0}, ["crops=0", "an int >= 1", "16"]),
        (HoloV, {"alpha": -1.0}, ["alpha=-1.0", "[0, inf]"]),
        (HoloV, {"overflow": "lost"}, ["overflow='lost'", "'share', 'zeros'"]),
        (IDSelection, {"gamma": -1.0}, ["gamma=-1.0", "[0, inf]"]),
        (IDSelection, {"floor": 0.0}, ["floor=0.0", "'zero', 'none'"]),
        (VTCCLS, {"start": -1}, ["start=-1", "an int >= 0", "16 of 24"]),
        (VTCCLS, {"ensemble": "product"}, ["ensemble='product'", "'sum', 'mean', 'max', 'min'"]),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(cls, parameters, words) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        cls(**parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_blocks_behind_the_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start=23 is outside \[0, 22\]"):
        VTCCLS(start=23).plan(FACTS)
