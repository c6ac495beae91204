"""HiPrune against its description: anchors, buffers and registers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import FACTS, best, counts, near_square, scored, shown
from torch import Tensor

from tokenreduce.anchors_and_registers import ROLES
from tokenreduce.layout import Layout
from tokenreduce.methods.hiprune import HiPrune
from tokenreduce.tokens import VisualTokens


def hiprune(
    objects: list[float], deep: list[float], k: int, alpha: float, layout: Layout, border: str
) -> tuple[list[int], list[int]]:
    """Kept indices and roles as sets and lists, after section 2 of the method's page."""
    n, width, cells = len(objects), layout.width, layout.height * layout.width
    cell_of = list(layout.cells or range(n))
    token_at = {cell: token for token, cell in enumerate(cell_of)}
    anchors = best(objects, round(k * alpha / 5))
    around: set[int] = set()
    for cell in (cell_of[a] for a in anchors):
        y, x = divmod(cell, width)
        if border == "clamp":
            around |= {min(max(cell + d, 0), cells - 1) for d in (-1, 1, -width, width)}
        else:
            steps = ((y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x))
            around |= {v * width + u for v, u in steps if 0 <= v < layout.height and 0 <= u < width}
    buffers = {token_at[c] for c in around if c in token_at} - set(anchors)
    kept_buffers = best(objects, k - len(anchors), buffers)
    chosen = set(anchors) | set(kept_buffers)
    rest = [j for j in range(n) if j not in anchors and j not in buffers]
    registers = best(deep, k - len(chosen), rest)
    role = [0] * n
    for named, value in ((anchors, 1), (kept_buffers, 2), (registers, 3)):
        for j in named:
            role[j] = value
    return sorted(chosen | set(registers)), role


@st.composite
def hiprune_cases(draw) -> tuple[list[int], list[int], int, float, Layout, str]:
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    cells = None
    if draw(st.booleans()):
        cells = tuple(sorted(draw(st.sets(st.integers(0, height * width - 1), min_size=1))))
    layout = Layout(height, width, cells=cells)
    n = layout.num_tokens
    scores = st.lists(st.integers(0, 6), min_size=n, max_size=n)
    alpha = draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]))
    return draw(scores), draw(scores), draw(st.integers(1, n)), alpha, layout, draw(st.sampled_from(["clamp", "drop"]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(hiprune_cases())
def test_hiprune_equals_its_description(case) -> None:
    objects, deep, k, alpha, layout, border = case
    scores = [torch.tensor([objects]) / 8, torch.tensor([deep]) / 8]
    plan = scored(HiPrune, scores, layout, keep=k, alpha=alpha, border=border)
    keep, role = hiprune(objects, deep, k, alpha, layout, border)
    assert plan.source[0].tolist() == keep
    assert plan.role is not None
    assert plan.role[0].tolist() == role
    assert plan.role_names == ROLES


def peaked(n: int, *at: int) -> Tensor:
    """(1, N) scores with peaks at ``at``, highest first."""
    score = torch.full((1, n), 0.1)
    for rank, j in enumerate(at):
        score[0, j] = 0.9 - 0.01 * rank
    return score


def test_hiprune_overflow_drops_buffers_of_the_lowest_object_score() -> None:
    # 2 anchors with 8 neighbours in all share 9 places: one buffer has to go, and no register comes
    layout, objects = Layout(5, 9), peaked(45, 20, 24)
    around = [11, 15, 19, 21, 23, 25, 29, 33]
    objects[0, around] = torch.tensor([0.5, 0.4, 0.7, 0.3, 0.6, 0.35, 0.45, 0.55])
    plan = scored(HiPrune, [objects, peaked(45, 0, 44)], layout, keep=9, alpha=1.0)
    assert plan.source[0].tolist() == sorted({20, 24, *around} - {21})


@pytest.mark.parametrize("parity", ["paper", "release"])
def test_hiprune_overflow_tells_scores_apart_that_differ_little(parity) -> None:
    """Scores of a large image are about 1 / N; their order must not drown in a larger number they are added to."""
    layout, n = Layout(60, 70), 4200
    objects = torch.full((1, n), 1 / n)
    objects[0, 2135] = 2 / n  # the only anchor of keep=4, with 4 buffers for 3 places
    objects[0, [2065, 2134, 2136, 2205]] += torch.tensor([1e-9, 3e-9, 4e-9, 2e-9])
    plan = scored(HiPrune, [objects, torch.full((1, n), 1 / n)], layout, keep=4, alpha=1.0, parity=parity)
    assert plan.source[0].tolist() == [2134, 2135, 2136, 2205]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 60), part=st.floats(0, 1), border=st.sampled_from(["clamp", "drop"]), seed=st.integers(0, 99))
def test_hiprune_never_exceeds_the_budget(n, part, border, seed) -> None:
    k, layout = max(1, round(part * n)), near_square(n)
    generator = torch.Generator().manual_seed(seed)
    small = [torch.rand(2, n, generator=generator).softmax(dim=1) for _ in range(2)]
    for factor in (1, n):  # attention received sums to 1, or averages 1 in towers that merge patches
        scores = [s * factor for s in small]
        exact = scored(HiPrune, scores, layout, keep=k, alpha=1.0, border=border)
        assert counts(exact) == [k, k]
        released = scored(HiPrune, scores, layout, keep=k, alpha=1.0, border=border, parity="release")
        assert max(counts(released)) <= k
        if factor == 1:  # no score exceeds 1: subtracting 1 excludes as surely as leaving out
            assert torch.equal(released.assign, exact.assign)
            assert torch.equal(released.role, exact.role)


def test_hiprune_release_loses_tokens_whose_score_exceeds_one() -> None:
    layout = Layout(4, 5)
    deep = peaked(20, 7, 0, 1, 2) + torch.nn.functional.one_hot(torch.tensor([7]), 20) * 2
    scores = [peaked(20, 7), deep]
    exact = scored(HiPrune, scores, layout, keep=8, alpha=0.6)
    released = scored(HiPrune, scores, layout, keep=8, alpha=0.6, parity="release")
    assert counts(exact) == [8]
    assert counts(released) == [7]
    assert set(released.source[0].tolist()) < set(exact.source[0].tolist())


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("end", ["left", "right"])
def test_hiprune_border(row, end) -> None:
    """``drop`` picks no neighbour on another row; ``clamp`` does, as released."""
    layout = Layout(4, 6)
    column = 0 if end == "left" else 5
    at = row * 6 + column
    beside = at - 1 if end == "left" else at + 1
    vertical = {at + d for d in (-6, 6) if 0 <= at + d < 24}
    level = {at + 1 if end == "left" else at - 1}
    scores = [peaked(24, at), peaked(24, *(j for j in range(24) if j % 5 == 3))]

    def buffers(border: str) -> set[int]:
        plan = scored(HiPrune, scores, layout, keep=10, alpha=0.5, border=border)
        assert plan.role is not None
        assert (plan.role[0] == 1).nonzero().flatten().tolist() == [at]
        assert counts(plan) == [10]
        return set((plan.role[0] == 2).nonzero().flatten().tolist())

    assert buffers("drop") == vertical | level
    clamped = {min(max(j, 0), 23) for j in (at - 6, at + 6, beside)} - {at}
    assert buffers("clamp") == clamped | level


@pytest.mark.parametrize("border", ["clamp", "drop"])
def test_hiprune_neighbours_stay_in_their_frame(border) -> None:
    layout = Layout(3, 4, frames=2)
    scores = [peaked(24, 11, 12), peaked(24, *range(24))]  # the last cell of one frame, the first of the next
    plan = scored(HiPrune, scores, layout, keep=10, alpha=1.0, border=border)
    assert plan.role is not None
    assert (plan.role[0] == 1).nonzero().flatten().tolist() == [11, 12]
    assert (plan.role[0] == 2).nonzero().flatten().tolist() == [7, 10, 13, 16]


def test_hiprune_finds_neighbours_of_tokens_that_are_left() -> None:
    """After an earlier stage, neighbours are those on the grid, not those in the shortened list."""
    layout = Layout(4, 5)
    left = torch.tensor([[0, 2, 6, 7, 8, 12, 13, 17, 19]])  # 7 sits between 2, 6, 8 and 12
    method = HiPrune(keep=6, alpha=0.8)
    (step,) = method.plan(FACTS)
    tokens = VisualTokens(
        features=torch.zeros(1, 9, 1),
        layout=layout,
        source=left,
        signals=dict(zip(step.needs, (peaked(9, 3), peaked(9, 8)))),
    )
    plan = method.reduce(tokens).check(tokens)
    assert plan.role is not None
    assert plan.role[0].tolist() == [0, 2, 2, 1, 2, 2, 0, 0, 3]


def test_hiprune_with_one_block_for_both_scores() -> None:
    method = HiPrune(keep=3, alpha=0.0, object_layer=23)
    (step,) = method.plan(FACTS)
    tokens = shown(step, 12)
    assert len(tokens.signals) == 1
    assert method.reduce(tokens).num_kept == 3
