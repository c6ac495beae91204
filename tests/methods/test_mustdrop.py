"""MustDrop in front of the language model: merged windows, key tokens; errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mustdrop_steps import described, facts, step_of
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.mustdrop import KEY, ROLES, MustDrop, Route
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ClsAttention
from tokenreduce.text_attention import key_set
from tokenreduce.tokens import VisualTokens
from tokenreduce.window_merging import merged_windows, windows_to_merge


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    w=st.integers(2, 3),
    prefix=st.integers(0, 3),
    data=st.data(),
)
def test_merged_windows_equal_their_description(rows, columns, w, prefix, data) -> None:
    height, width, number = rows * w, columns * w, rows * columns
    values = st.lists(st.integers(0, 3), min_size=number, max_size=number)
    alike = [data.draw(values) for _ in range(2)]
    count = [data.draw(st.integers(0, number)) for _ in range(2)]
    assign, source, valid = merged_windows(torch.tensor(alike) / 4, torch.tensor(count), height, width, w, prefix)
    for b in range(2):
        expected = [[p] for p in range(prefix)]
        expected += [[c + prefix for c in row] for row in described(alike[b], count[b], height, width, w)]
        k = len(expected)
        assert k == prefix + height * width - count[b] * (w * w - 1)
        assert valid is None or valid[b].tolist() == [i < k for i in range(source.shape[1])]
        assert source[b, :k].tolist() == [max(row) for row in expected]  # the bottom-right token of a window
        found = [(assign[b] == r).nonzero().flatten().tolist() for r in range(k)]
        assert found == [sorted(row) for row in expected]
    assert (valid is None) == (count[0] == count[1])


def block0(x: Tensor, side: int, method: MustDrop) -> tuple[VisualTokens, Reduction]:
    step = step_of(method, "encoder")
    tokens = VisualTokens(x, Layout(side, side), step.stage, step.layer, prefix=1, amount=step.amount)
    return tokens, method.reduce(tokens).check(tokens)


def scenes(seed: int = 0) -> Tensor:
    """(3, 1 + 36, 8) with 0, 2 and 4 flat windows out of 4."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 6, 6, 8, generator=generator)
    flat = torch.randn(4, 8, generator=generator)
    for b, windows in enumerate(([], [1, 2], [0, 1, 2, 3])):
        for v in windows:
            x[b, v // 2 * 3 : v // 2 * 3 + 3, v % 2 * 3 : v % 2 * 3 + 3] = flat[v]
    return torch.cat([torch.randn(3, 1, 8, generator=generator), x.flatten(1, 2)], dim=1)


def test_each_image_merges_what_is_alike_in_it() -> None:
    x = scenes()
    method = MustDrop(mode="threshold", keep=192)
    _, plan = block0(x, 6, method)
    assert plan.valid is not None
    assert plan.valid.sum(dim=1).tolist() == [37, 37 - 16, 37 - 32]
    for b in range(3):
        _, alone = block0(x[b : b + 1], 6, method)
        assert alone.valid is None
        k = alone.num_kept
        assert torch.equal(plan.source[b, :k], alone.source[0])
        assert torch.equal(plan.assign[b], alone.assign[0])
    _, shared = block0(x[1:], 6, MustDrop(mode="threshold", keep=192, batch_min=True))
    assert shared.valid is None
    assert shared.num_kept == 21
    _, untouched = block0(x[:1], 6, method)
    assert torch.equal(untouched.assign, torch.arange(37)[None])


def test_merging_conserves_mass_and_is_constant_on_groups() -> None:
    x = scenes()[2:]
    _, plan = block0(x, 6, MustDrop(merge_to=13, keep=0.2))
    size = torch.bincount(plan.assign[0], minlength=plan.num_kept)
    assert size.tolist() == [1, 9, 9, *[1] * 18]  # 36 - 2 * 8 = 20 patches: the next below, 12, is too few
    merged = plan.carry(x)
    torch.testing.assert_close((merged * size[None, :, None]).sum(dim=1), x.sum(dim=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(plan.carry(merged.gather(1, plan.assign[..., None].expand_as(x))), merged)


def test_a_tie_of_flat_windows_goes_to_the_first() -> None:
    x = torch.cat([torch.randn(1, 1, 8), torch.randn(1, 1, 8).expand(1, 36, 8)], dim=1)
    _, plan = block0(x, 6, MustDrop(merge_to=20, keep=0.4))
    assert plan.source[0, 1:3].tolist() == [1 + 14, 1 + 17]


def test_targets_are_reached_from_above() -> None:
    for target, left in ((576, 576), (570, 576), (568, 568), (300, 304), (64, 64), (1, 64)):
        method = MustDrop(merge_to=target, keep=192)
        assert 576 - 8 * windows_to_merge(576, target, method.window) == left


def test_keys_are_the_most_attended_patches() -> None:
    score = torch.tensor([[0.1, 0.4, 0.4, 0.05, 0.05]])
    assert key_set(score, 0.08).tolist() == [[1]]
    assert key_set(score, 0.4).tolist() == [[1, 2]]
    assert key_set(torch.rand(2, 576), 0.08).shape == (2, 47)
    assert key_set(torch.rand(2, 25), 0.08).shape == (2, 2)  # 0.08 * 25 is 2, not a little more
    method = MustDrop(keep=192, mode="threshold")
    step = step_of(method, "projector")
    assert step.needs == (ClsAttention(23),)
    tokens = VisualTokens(torch.randn(2, 50, 3), Layout(24, 24), signals={step.needs[0]: torch.rand(2, 50)})
    tokens.amount = step.amount
    plan = method.reduce(tokens)
    assert plan.role_names == ROLES
    assert (plan.role == KEY).sum(dim=1).tolist() == [4, 4]
    assert torch.equal(plan.source, torch.arange(50).expand(2, -1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keep=st.integers(20, 500), rate=st.sampled_from([0.01, 0.08, 0.5, 1.0]))
def test_there_are_never_more_keys_than_tokens_in_the_end(keep, rate) -> None:
    method = MustDrop(keep=keep, key_rate=rate)
    planned = method.schedule(576, Route(32, True))
    step = step_of(method, "projector")
    n = planned[0]
    tokens = VisualTokens(
        torch.zeros(1, n, 1), Layout(24, 24), signals={step.needs[0]: torch.rand(1, n)}, amount=Route(32, True)
    )
    role = method.reduce(tokens).role
    assert role is not None
    assert 1 <= int((role == KEY).sum()) <= planned[-1]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"mode": "exact"}, ["mode='exact'", "'budget'", "'threshold'"]),
        ({"score": "text"}, ["score='text'", "'cls'", "'global_mean'"]),
        ({"output_order": "time"}, ["output_order='time'", "'raster'", "'reference'"]),
        ({"similarity": 2.0}, ["similarity=2.0", "[-1, 1]"]),
        ({"key_rate": 0.0}, ["key_rate=0.0", "(0, 1]", "0.08"]),
        ({"window": 1}, ["window=1", "an int >= 2", "3"]),
        ({"global_threshold": 0.0}, ["global_threshold=0.0", "(0, 1]"]),
        ({"individual_threshold": 1.5}, ["individual_threshold=1.5", "(0, 1]"]),
        ({"layers": (6, 2)}, ["layers=(6, 2)", "ascending ints >= 0", "(2, 6, 10, 14)"]),
        ({"layers": ()}, ["layers=()", "ascending"]),
        ({"merge_to": 0}, ["merge_to=0", "an int >= 1"]),
        ({"merge_to": 1.5}, ["merge_to=1.5", "(0, 1]"]),
        ({"keep": 100, "mode": "threshold"}, ["keep=100", "192, 128, 64", "1/3, 2/9", "mode='budget'"]),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside") as caught:
        MustDrop(**parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "about", "words"),
    [
        ({"score": "cls"}, {"has_cls": False}, ["no [CLS] token", "score='global_mean'"]),
        ({"merge": True}, {"stages": ("projector", "llm", "cache")}, ["does not offer", "merge=False"]),
        ({}, {"tower_grid": (16, 16)}, ["window=3", "16x16", "allowed: 2, 4, 8, 16", "window=2", "merge=False"]),
        ({}, {"tower_grid": (7, 9)}, ["7x9", "allowed: none", "merge=False"]),
        ({}, {"decoder_depth": 0}, ["needs a language model"]),
        ({"layers": (2, 31)}, {}, ["layers=(2, 31)", "0 to 30"]),
        ({"keep": 2}, {}, ["keep=2 of 576", "an average of 5 or more"]),
    ],
    ids=str,
)
def test_models_that_cannot_serve_it_are_refused(parameters, about, words) -> None:
    with pytest.raises(ValueError, match=r"mustdrop|layers|keep|window") as caught:
        MustDrop(**parameters).plan(facts(**about))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_tokens_that_are_no_grid_are_refused() -> None:
    tokens = VisualTokens(torch.randn(1, 30, 4), Layout(6, 6), "encoder", 0, prefix=1, amount=Route(32, True))
    with pytest.raises(ValueError, match=r"block 0 holds 29 tokens of a 6x6 grid.*merge=False"):
        MustDrop().reduce(tokens)
    tokens = VisualTokens(torch.randn(1, 17, 4), Layout(4, 4), "encoder", 0, prefix=1, amount=Route(32, True))
    with pytest.raises(ValueError, match=r"3x3 windows.*4x4 grid"):
        MustDrop().reduce(tokens)
