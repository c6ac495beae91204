"""Every registered method on tokens and signals alone: counts, order, ties, batches; then what is special to each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.anchors_and_registers import ROLES
from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.methods.fastervlm import FasterVLM
from tokenreduce.methods.fastv import FastV
from tokenreduce.methods.hiprune import HiPrune
from tokenreduce.methods.pool import Pool
from tokenreduce.methods.random import Random
from tokenreduce.methods.uniform import Uniform
from tokenreduce.reduction import Reduction
from tokenreduce.registry import make, registry
from tokenreduce.signals import (
    AttentionReceived,
    ClsAttention,
    ImageFingerprint,
    Keys,
    LastQueryAttention,
    ProjectorInput,
    Signal,
    TextAttention,
)
from tokenreduce.tokens import STAGES, VisualTokens

FACTS = ModelFacts(
    family="stand-in", stages=STAGES, tower_depth=24, feature_block=22, has_cls=True, tower_prefix=1, decoder_depth=32
)
CHANNELS = 3
#: methods that fill a budget; merging inside the encoder follows a schedule of amounts instead
IMAGES = [name for name, cls in registry().items() if "encoder" not in cls.stages and "image" in cls.media]
#: tested by what they need: test_layer_by_layer.py (an average over layers), test_sparsevlm.py, test_cdpruner.py, test_dart.py
ELSEWHERE = ("aim", "pyramiddrop", "sparsevlm", "cdpruner", "dart")
# methods that answer for a single image with exactly the budget
NAMES = [name for name in IMAGES if name not in ELSEWHERE]
every_method = pytest.mark.parametrize("name", NAMES)


def value_of(signal: Signal, batch: int, n: int, generator: torch.Generator) -> Tensor:
    """A random value of the shape and kind that ``signal`` promises."""
    if isinstance(signal, ImageFingerprint):
        return torch.randint(-(1 << 62), 1 << 62, (batch,), generator=generator)
    if isinstance(signal, (ClsAttention, AttentionReceived, LastQueryAttention, TextAttention)):
        return torch.randn(batch, n, generator=generator).softmax(dim=1)
    if isinstance(signal, Keys):
        return torch.randn(batch, n, 4, generator=generator)
    raise NotImplementedError(f"say in value_of() what a {type(signal).__name__} looks like")


def near_square(n: int) -> Layout:
    height = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    return Layout(height, n // height)


def shown(step: Step, n: int, batch: int = 2, seed: int = 0, layout: Layout | None = None) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, n, CHANNELS, generator=generator)
    return VisualTokens(
        features=features,
        layout=layout or near_square(n),
        stage=step.stage,
        layer=step.layer,
        amount=step.amount,
        signals={  # a projector that changes nothing
            signal: features if isinstance(signal, ProjectorInput) else value_of(signal, batch, n, generator)
            for signal in step.needs
        },
    )


def rows_of(tokens: VisualTokens, index: list[int]) -> VisualTokens:
    """The images ``index`` of a batch."""
    return VisualTokens(
        features=tokens.features[index],
        layout=tokens.layout,
        stage=tokens.stage,
        layer=tokens.layer,
        amount=tokens.amount,
        signals={signal: value[index] for signal, value in tokens.signals.items()},
    )


def scored(cls: type[Method], scores: Iterable[Tensor], layout: Layout | None = None, **parameters: Any) -> Reduction:
    """``cls`` shown the scores (B, N) in the order in which it asks for them."""
    method = cls(**parameters)
    (step,) = method.plan(FACTS)
    values = list(scores)
    n = values[0].shape[1]
    tokens = shown(step, n, len(values[0]), layout=layout)
    tokens.signals = dict(zip(step.needs, values))
    return method.reduce(tokens).check(tokens)


def counts(plan: Reduction) -> list[int]:
    return [plan.num_kept] * len(plan.source) if plan.valid is None else plan.valid.sum(dim=1).tolist()


# ------------------------------------------------------------------ every method


@every_method
def test_the_count_is_exact_for_every_size(name) -> None:
    for n in range(1, 301):
        for keep in (1, n // 3 or 1, n - 1 or 1, n, 0.1, 0.5, 1.0):
            method = make(name, keep=keep)
            wanted = keep if isinstance(keep, int) else max(1, round(keep * n))
            for step in method.plan(FACTS):
                tokens = shown(step, n)
                assert counts(method.reduce(tokens).check(tokens)) == [wanted] * 2, f"{n=} {keep=}"


@every_method
def test_every_count_of_one_size(name) -> None:
    for keep in range(1, 64):
        method = make(name, keep=keep)
        for step in method.plan(FACTS):
            tokens = shown(step, 63)
            assert counts(method.reduce(tokens).check(tokens)) == [keep] * 2


@every_method
def test_a_count_above_the_size_keeps_all(name) -> None:
    method = make(name, keep=1000)
    for step in method.plan(FACTS):
        plan = method.reduce(shown(step, 30))
        assert torch.equal(plan.source, torch.arange(30).expand(2, -1))


@every_method
@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 120), part=st.floats(0, 1), batch=st.integers(1, 4), seed=st.integers(0, 999))
def test_rows_are_distinct_ascending_and_assigned(name, n, part, batch, seed) -> None:
    method = make(name, keep=max(1, round(part * n)))
    for step in method.plan(FACTS):
        tokens = shown(step, n, batch, seed)
        plan = method.reduce(tokens).check(tokens)
        for b in range(batch):
            rows = plan.source[b, : counts(plan)[b]]
            source = rows[rows >= 0]
            assert len(rows) - len(source) <= 1  # a summary comes last
            assert torch.equal(rows[: len(source)], source)
            assert (source.diff() > 0).all()
            assert (source < n).all()
            # the token a row sits at is one that the row stands for
            assert torch.equal(plan.assign[b, source], torch.arange(len(source)))
            assert set(plan.assign[b].tolist()) <= {-1, *range(len(rows))}
            if not plan.merges and plan.features is None:
                assert int((plan.assign[b] >= 0).sum()) == len(source)


@every_method
def test_a_batch_equals_its_images(name) -> None:
    method = make(name, keep=11)
    for step in method.plan(FACTS):
        tokens = shown(step, 40, batch=4)
        together = method.reduce(tokens)
        for order in ([0], [3], [2, 0], [3, 2, 1, 0]):
            some = method.reduce(rows_of(tokens, order))
            for field in ("source", "assign", "weight", "features", "role"):
                found, whole = getattr(some, field), getattr(together, field)
                assert (found is None) == (whole is None)
                if found is not None and field == "features":  # products of a batch round otherwise than those of one
                    torch.testing.assert_close(found, whole[order])
                elif found is not None:
                    assert torch.equal(found, whole[order]), field
            if some.features is None:
                assert torch.equal(some.carry(tokens.features[order]), together.carry(tokens.features)[order])


@every_method
def test_what_is_shown_is_left_alone(name) -> None:
    method = make(name, keep=7)
    for step in method.plan(FACTS):
        tokens = shown(step, 24)
        given = [tokens.features, tokens.source, tokens.size, tokens.role, *tokens.signals.values()]
        before = [x.clone() for x in given]
        plan = method.reduce(tokens)
        if plan.features is None:
            plan.carry(tokens.features)
        assert all(map(torch.equal, before, given))


@every_method
def test_the_books_balance_when_a_plan_is_carried_out(name) -> None:
    """Carried out on images: sizes count the original tokens, seats stay ascending, nothing is counted twice."""
    method = make(name, keep=13)
    layout = Layout(6, 8)
    for step in method.plan(FACTS):
        tokens = shown(step, 48, layout=layout)
        (group,) = group_images([Image(b, torch.arange(48) + 5, layout) for b in range(2)], torch.device("cpu"))
        group.features = tokens.features
        for part in group.apply(method.reduce(tokens), step.stage, step.layer, method.name):
            assert part.num_tokens == 13
            assert (part.seats.diff(dim=1) > 0).all()
            assert torch.equal(part.size.sum(dim=1), (part.assign >= 0).sum(dim=1).float())
            for row in range(13):
                assert torch.equal((part.assign == row).sum(dim=1).float(), part.size[:, row])


@every_method
def test_the_position_policy_is_handed_on(name) -> None:
    for policy in ("keep", "renumber"):
        method = make(name, keep=4, positions=policy)
        for step in method.plan(FACTS):
            assert method.reduce(shown(step, 9)).positions == policy


@every_method
def test_gradients_after_a_run_in_inference_mode(name) -> None:
    """Nothing remembered from an inference run may stand in the way of training."""
    method = make(name, keep=5)
    grid_partition.cache_clear()
    for step in method.plan(FACTS):
        with torch.inference_mode():
            method.reduce(shown(step, 35))
        tokens = shown(step, 35)
        tokens.features.requires_grad_()
        plan = method.reduce(tokens)
        rows = plan.carry(tokens.features) if plan.features is None else plan.features
        rows.square().sum().backward()
        assert tokens.features.grad is not None
        assert torch.equal(tokens.features.grad.abs().sum(dim=2) > 0, plan.assign >= 0)


# ------------------------------------------------------------------ scores and ties


def best(score: list[float], k: int, among: Iterable[int] | None = None) -> list[int]:
    """Indices of the k highest, ties to the lowest index, by sorting Python pairs."""
    pool = range(len(score)) if among is None else among
    return sorted(pool, key=lambda j: (-score[j], j))[:k]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(score=st.lists(st.integers(0, 4), min_size=1, max_size=40), part=st.floats(0, 1))
@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (FasterVLM, {}),
        (FasterVLM, {"heads": "max"}),
        (FasterVLM, {"score": "global_mean"}),
        (FastV, {}),
        (FastV, {"query": "all"}),
        (HiPrune, {"alpha": 0.0}),
    ],
)
def test_ties_go_to_the_lowest_index(cls, more, score, part) -> None:
    k = max(1, round(part * len(score)))
    values = torch.tensor([score]) / 8
    scores = [values.flip(1), values] if cls is HiPrune else [values]  # without anchors the object score says nothing
    plan = scored(cls, scores, keep=k, **more)
    assert plan.source[0].tolist() == sorted(best(score, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_top_k_is_stable_in_every_dtype(dtype) -> None:
    score = torch.tensor([[1, 3, 3, 0, 3, 1], [2, 2, 2, 2, 2, 2]], dtype=dtype)
    assert top_k(score, 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    assert top_k(score, 0).shape == (2, 0)


def test_attention_methods_ask_for_the_layer_they_describe() -> None:
    assert FasterVLM().plan(FACTS) == (Step("projector", needs=(ClsAttention(22, "mean"),)),)
    assert FasterVLM(heads="max").plan(FACTS)[0].needs == (ClsAttention(22, "max"),)
    assert FasterVLM(score="global_mean").plan(FACTS)[0].needs == (AttentionReceived(22),)
    assert FastV(layer=3).plan(FACTS) == (Step("llm", layer=3, needs=(LastQueryAttention(2),)),)
    assert FastV(query="all").plan(FACTS)[0].needs == (AttentionReceived(1, "llm"),)
    assert HiPrune().plan(FACTS)[0].needs == (AttentionReceived(8), AttentionReceived(22))
    windows = replace(FACTS, tower_depth=32, feature_block=31, full_blocks=(7, 15, 23, 31))  # Qwen2.5-VL
    assert HiPrune().plan(windows)[0].needs == (AttentionReceived(15), AttentionReceived(31))
    assert HiPrune(object_layer=1).plan(FACTS)[0].needs == (AttentionReceived(0), AttentionReceived(22))


# ------------------------------------------------------------------ HiPrune


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


# ------------------------------------------------------------------ Random


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


# ------------------------------------------------------------------ Uniform and Pool


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


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"keep": 0}, ValueError, ["keep=0", "an int >= 1", "(0, 1]"]),
        ({"keep": -3}, ValueError, ["keep=-3", "an int >= 1"]),
        ({"keep": 0.0}, ValueError, ["keep=0", "(0, 1]"]),
        ({"keep": 1.5}, ValueError, ["keep=1.5", "(0, 1]"]),
        ({"keep": 64.0}, ValueError, ["keep=64", "(0, 1]", "pass the int keep=64"]),
        ({"keep": float("nan")}, ValueError, ["keep=nan", "(0, 1]"]),
        ({"keep": True}, TypeError, ["keep=True", "bool", "(0, 1]"]),
        ({"keep": "half"}, TypeError, ["keep='half'", "str", "(0, 1]"]),
        ({"keep": None}, TypeError, ["keep=None", "(0, 1]"]),
        ({"positions": "original"}, ValueError, ["positions='original'", "'keep'", "'renumber'"]),
        ({"keeep": 3}, TypeError, ["'keeep'", "keep"]),
    ],
    ids=str,
)
def test_every_method_refuses_bad_parameters(name, parameters, kind, words) -> None:
    if parameters == {"keep": None} and registry()[name].keep is None:  # has a meaning: what was published
        assert make(name, keep=None).is_identity(100) is False
        return
    with pytest.raises(kind) as caught:
        make(name, **parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "kind", "words"),
    [
        ("fastervlm", {"heads": "median"}, ValueError, ["heads='median'", "'mean'", "'max'"]),
        ("fastervlm", {"score": "text"}, ValueError, ["score='text'", "'cls'", "'global_mean'"]),
        ("fastervlm", {"heads": "max", "score": "global_mean"}, ValueError, ["heads='max'", "score='cls'"]),
        ("fastv", {"layer": 0}, ValueError, ["layer=0", "an int >= 1"]),
        ("fastv", {"layer": 2.0}, ValueError, ["layer=2.0", "an int >= 1"]),
        ("fastv", {"layer": True}, ValueError, ["layer=True", "an int >= 1"]),
        ("fastv", {"query": "first"}, ValueError, ["query='first'", "'last'", "'all'"]),
        ("hiprune", {"alpha": -0.1}, ValueError, ["alpha=-0.1", "[0, 1]"]),
        ("hiprune", {"alpha": 1.01}, ValueError, ["alpha=1.01", "[0, 1]"]),
        ("hiprune", {"alpha": float("nan")}, ValueError, ["alpha=nan", "[0, 1]"]),
        ("hiprune", {"border": "wrap"}, ValueError, ["border='wrap'", "'clamp'", "'drop'"]),
        ("hiprune", {"parity": "code"}, ValueError, ["parity='code'", "'paper'", "'release'"]),
        ("hiprune", {"object_layer": 0}, ValueError, ["object_layer=0", "an int >= 1"]),
        ("hiprune", {"object_layer": 9.0}, ValueError, ["object_layer=9.0", "an int >= 1"]),
        ("random", {"seed": "x"}, TypeError, ["seed='x'", "any int"]),
        ("random", {"seed": 0.5}, TypeError, ["seed=0.5", "any int"]),
    ],
    ids=str,
)
def test_methods_refuse_their_own_bad_parameters(name, parameters, kind, words) -> None:
    with pytest.raises(kind) as caught:
        make(name, **parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_layers_a_model_does_not_have_are_refused_when_planning() -> None:
    with pytest.raises(ValueError, match=r"layer=32 leaves no decoder layer.*allowed: 1 to 31"):
        FastV(layer=32).plan(FACTS)
    with pytest.raises(ValueError, match=r"object_layer=24 is outside \[1, 23\]"):
        HiPrune(object_layer=24).plan(FACTS)
    without = dataclasses.replace(FACTS, has_cls=False, tower_prefix=0)
    for asked in ({"score": "cls"}, {"heads": "max"}):
        with pytest.raises(ValueError, match=r"no \[CLS\] token; allowed here: score='global_mean'"):
            FasterVLM(**asked).plan(without)
    assert FasterVLM().plan(without) == FasterVLM(score="global_mean").plan(without)
    assert FasterVLM().substitutes(without)
    assert not FasterVLM(score="global_mean").substitutes(without)
    assert not FasterVLM().substitutes(FACTS)


def test_parameters_of_other_methods_are_refused_with_a_hint() -> None:
    with pytest.raises(
        TypeError, match=r"fastv has no parameter 'alpha'; it has: keep, positions, strict, layer, query"
    ):
        make("fastv", alpha=0.1)
    with pytest.raises(TypeError, match=r"hiprune has no parameter 'alfa'.*Did you mean 'alpha'\?"):
        make("hiprune", alfa=0.1)
    with pytest.raises(ValueError, match=r"method='hiprun' is unknown.*Did you mean 'hiprune'\?"):
        make("hiprun")
