"""HoliTom against its description: the outer part and the fold."""

from __future__ import annotations

import math

import pytest
import torch
from holitom_videos import CLOSE, footage, planned, scores, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.temporal_segmentation import temporal_segmentation
from tokenreduce.layout import Layout
from tokenreduce.matching import fold
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.reduction import Reduction


def counts(plan: Reduction) -> list[int]:
    assert plan.valid is not None
    return plan.valid.sum(dim=1).tolist()


def described(x: Tensor, score: Tensor, method: HoliTom) -> tuple[Tensor, list[int]]:
    """Tokens (K, D) in the released order and counts per segment of one video (T, N, D), as the page writes it."""
    frames, n, _ = x.shape
    similarity = torch.nn.functional.cosine_similarity(x[:-1], x[1:], dim=-1)
    still = similarity > method.tau
    segments, saved = temporal_segmentation(still, method.max_window)
    assert isinstance(method.keep, float)
    ratio = min(method.keep * frames * n / (frames * n - saved), 1.0)
    tokens, lengths = [], []
    for start, stop in segments:
        static = [j for j in range(n) if stop - start > 1 and bool(still[start : stop - 1, j].all())]
        moving = [j for j in range(n) if j not in static]
        part = []
        m = round(len(static) * ratio)
        if m:
            mean = x[start:stop, static].mean(dim=0)
            k = min(method.neighbours, m) if method.reference_k else method.neighbours
            centre, _, assign = density_peaks(mean[None], m, k)
            for row, c in enumerate(centre[0].tolist()):
                members = [i for i, r in enumerate(assign[0].tolist()) if r == row and i != c]
                if method.plain_mean:
                    part.append(mean[[c, *members]].mean(dim=0))
                elif members:
                    part.append(method.beta * mean[c] + (1 - method.beta) * mean[members].mean(dim=0))
                else:
                    part.append(mean[c])
        for t in range(start, stop):
            k = math.ceil(round(len(moving) * ratio, 9))
            best = sorted(moving, key=lambda j: (-float(score[t, j]), j))[:k]
            part += [x[t, j] for j in sorted(best)]
        tokens += part
        lengths.append(len(part))
    return torch.stack(tokens), lengths


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frames=st.integers(2, 12),
    n=st.integers(2, 12),
    keep=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    change=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    more=st.sampled_from([{}, {"reference_k": True}, {"plain_mean": True}, {"beta": 1.0}, {"max_window": 3}]),
    seed=st.integers(0, 999),
)
def test_equals_its_description(frames, n, keep, change, more, seed) -> None:
    method = HoliTom(keep=keep, exact=False, output_order="reference", **more)
    x = footage(frames, n, change=change, seed=seed)
    score = scores(x, seed)
    tokens, plan = planned(method, x, score)
    try:
        expected, _ = described(x[0], score[0], method)
    except RuntimeError:  # nothing at all is left: the library keeps one token
        assert counts(plan) == [1]
        return
    torch.testing.assert_close(plan.carry(tokens.features)[0], expected, **CLOSE)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    frames=st.integers(2, 10),
    n=st.integers(1, 10),
    keep=st.floats(0.01, 0.99) | st.integers(1, 40),
    change=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    order=st.sampled_from(["raster", "reference"]),
    seed=st.integers(0, 999),
)
def test_the_budget_is_filled_exactly(frames, n, keep, change, order, seed) -> None:
    method = HoliTom(keep=keep, output_order=order)
    x = footage(frames, n, change=change, seed=seed, batch=2)
    _, plan = planned(method, x, scores(x, seed))
    wanted = Budget(keep).count(frames * n)
    if wanted >= frames * n:
        assert plan.valid is None
        assert plan.num_kept == frames * n
        return
    for b in range(2):
        still = torch.nn.functional.cosine_similarity(x[b, :-1], x[b, 1:], dim=-1) > method.tau
        _, saved = temporal_segmentation(still)
        k = min(wanted, frames * n - saved)  # what stands still exists once
        assert counts(plan)[b] == k
        source, assign = plan.source[b, :k], plan.assign[b]
        assert len(set(source.tolist())) == k
        assert torch.equal(assign[source], torch.arange(k))
        assert set(assign.tolist()) <= {-1, *range(k)}
        if order == "raster":
            assert (source.diff() > 0).all()
        # a row stands for one token, or for the same places of all frames of a segment
        for row in range(k):
            members = (assign == row).nonzero().flatten()
            times = {(j // n).item() for j in members}
            cells = {(j % n).item() for j in members}
            assert len(members) == len(times) * len(cells)
            assert times == set(range(min(times), max(times) + 1))
            assert int(source[row]) == min(times) * n + int(source[row] % n)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(frames=st.integers(2, 8), n=st.integers(2, 9), change=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_mass_is_conserved_and_unmerging_is_constant_on_groups(frames, n, change, seed) -> None:
    method = HoliTom(keep=0.4)
    x = footage(frames, n, change=change, seed=seed)
    tokens, plan = planned(method, x, scores(x, seed))
    (group,) = group_images([Image(0, torch.arange(frames * n) + 3, tokens.layout)], torch.device("cpu"))
    group.features = tokens.features
    (after,) = group.apply(plan, "projector", None, "holitom")
    assert float(after.size.sum()) == int((plan.assign >= 0).sum())
    assert plan.weight is not None
    for row in range(after.num_tokens):
        members = (plan.assign[0] == row).nonzero().flatten()
        weight = plan.weight[0, members] / plan.weight[0, members].sum()
        assert (weight >= 0).all()
        torch.testing.assert_close(
            (weight[:, None] * tokens.features[0, members]).sum(0), after.features[0, row], **CLOSE
        )
    # a mean of constants is that constant: merging after spreading changes nothing
    k = after.num_tokens
    spread = after.features[0][plan.assign[0].clamp_min(0)][None]
    torch.testing.assert_close(plan.carry(spread)[:, :k], after.features, **CLOSE)


@pytest.mark.parametrize("ratio", ["video", "segment"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_equals_its_videos(ratio, exact) -> None:
    x = torch.cat([footage(9, 8, change=c, seed=i) for i, c in enumerate((0.0, 0.2, 0.6, 1.0))])
    method = HoliTom(keep=0.3, ratio=ratio, exact=exact)
    _, together = planned(method, x, scores(x))
    assert len(set(counts(together))) > 1 or exact
    for b in range(4):
        _, alone = planned(method, x[b : b + 1], scores(x)[b : b + 1])
        k = counts(alone)[0]
        assert counts(together)[b] == k
        assert torch.equal(together.source[b, :k], alone.source[0])
        assert torch.equal(together.assign[b], alone.assign[0])
        assert torch.equal(together.weight[b], alone.weight[0])


def test_a_photograph_and_noise() -> None:
    still = footage(6, 10, change=0.0).clone()
    still[:] = still[:, :1]
    tokens, plan = planned(HoliTom(keep=10), still, scores(still))
    assert plan.source.tolist() == [list(range(10))]  # one copy of everything
    torch.testing.assert_close(plan.carry(tokens.features), still[:, 0], **CLOSE)
    noise = footage(6, 10, channels=64, change=1.0)
    _, plan = planned(HoliTom(keep=0.5), noise, scores(noise))
    assert (torch.bincount(plan.source[0] // 10) == 5).all()
    assert counts(plan) == [30]


def test_ties_go_to_the_lowest_index() -> None:
    noise = footage(3, 8, channels=64, change=1.0)
    _, plan = planned(HoliTom(keep=0.5), noise, torch.zeros(1, 3, 8))
    assert plan.source.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]]
    # 25 % of 2 frames of 7 are 4 (half to even from 3.5): both frames have the same remainder, the first one gets it
    noise = footage(3, 7, channels=64, change=1.0)
    _, plan = planned(HoliTom(keep=4), noise, torch.zeros(1, 3, 7))
    assert plan.source.tolist() == [[0, 1, 7, 14]]


def test_images_and_full_budgets_pass_through() -> None:
    method = HoliTom(keep=0.1)
    image = shown(torch.randn(2, 1, 12, 4), torch.rand(2, 1, 12), width=4)
    for stage in ("projector", "llm"):
        image.stage = stage
        assert torch.equal(method.reduce(image).source, torch.arange(12).expand(2, -1))
    assert HoliTom(keep=1.0).is_identity(10)
    assert not method.is_identity(10)
    x = footage(3, 4)
    _, plan = planned(HoliTom(keep=12), x, scores(x))
    assert plan.in_order
    assert plan.num_kept == 12
    # a single frame, reduced by itself, is one segment in which everything moves
    assign, source, _ = method._video(x[0, :1], scores(x)[0, :1])
    assert len(source) == 1
    assert (assign >= 0).sum() == 1


def test_frames_of_an_incomplete_grid() -> None:
    """A model that cuts the first patch of every image shows frames of 8 cells."""
    x = footage(4, 8, change=0.2)
    cells = tuple(9 * t + c for t in range(4) for c in range(1, 9))
    whole = shown(x, scores(x))
    cut = shown(x, scores(x), layout=Layout(3, 3, frames=4, cells=cells))
    assert torch.equal(HoliTom().reduce(cut).assign, HoliTom().reduce(whole).assign)


def folded(x: Tensor, score: Tensor, k: int) -> tuple[list[int], Tensor]:
    """The released loop on one sequence (N, D)."""
    n = len(x)
    keep = sorted(sorted(range(n), key=lambda j: (-float(score[j]), j))[:k])
    rest = [j for j in range(n) if j not in keep]
    unit = torch.nn.functional.normalize(x, dim=-1)
    target = {j: max(keep, key=lambda t: (float(unit[j] @ unit[t]), -t)) for j in rest}
    h = x.clone()
    for j in rest:
        h[target[j]] = (h[target[j]] + h[j]) / 2
    return keep, h[keep]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), part=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_fold_equals_the_loop(n, part, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, score = torch.randn(2, n, 3, generator=generator), torch.rand(2, n, generator=generator)
    k = max(1, round(part * n))
    plan = fold(x, score, k)
    for b in range(2):
        keep, expected = folded(x[b], score[b], k)
        assert plan.source[b].tolist() == keep
        torch.testing.assert_close(plan.carry(x)[b], expected, **CLOSE)
    assert (plan.assign >= 0).all()
    total = torch.zeros(2, k).scatter_add_(1, plan.assign, plan.weight)
    torch.testing.assert_close(total, torch.ones(2, k), **CLOSE)


def test_many_sources_fade_without_underflow() -> None:
    x = torch.ones(1, 400, 2) + torch.arange(400)[None, :, None] * 1e-3
    score = torch.zeros(1, 400)
    score[0, 7] = 1
    out = fold(x, score, 1).carry(x)
    _, expected = folded(x[0].double(), score[0], 1)
    torch.testing.assert_close(out[0], expected.float(), **CLOSE)
