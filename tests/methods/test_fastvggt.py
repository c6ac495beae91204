"""FastVGGT: who merges into whom against a plain loop, in lone attention over frames and in the towers at hand."""

from __future__ import annotations

import pytest
import reduced
import torch
from encoder_models import tower
from torch import nn

import tokenreduce as tr
from tokenreduce.methods.fastvggt import FastVGGT, Shape, every_tenth


def rows_by_hand(metric, shape, cells, keep, protect):
    """Of rows (N, C), frame by frame: the groups that become one row, in which all others stand, and what each place is given."""
    frames, special, height, width = shape
    hubs, n = [], len(metric)
    for t in range(frames):
        for j in range(shape.each):
            y, x = divmod(j - special, width)
            inside = y < height // 2 * 2 and x < width // 2 * 2
            if t == 0 or j < special or (inside and int(cells[t - 1, y // 2, x // 2]) == y % 2 * 2 + x % 2):
                hubs.append(t * shape.each + j)
    k = n // 10 if protect else 0
    alone = [i * max(1, n // k) for i in range(k)]
    unit = torch.nn.functional.normalize(metric.double(), dim=1)
    sources = [i for i in range(n) if i not in hubs and i not in alone]
    best = {i: max(hubs, key=lambda h, i=i: (float(unit[i] @ unit[h]), -h)) for i in sources}
    leaving = sorted(sources, key=lambda i: (-float(unit[i] @ unit[best[i]]), i))[: int((1 - keep) * n)]
    groups = [[i] for i in sources if i not in leaving] + [[h, *(i for i in leaving if best[i] == h)] for h in hubs]
    rows = groups + [[i] for i in alone]
    given = [
        len(groups) + alone.index(i) if i in alone else next(r for r, own in enumerate(groups) if i in own)
        for i in range(n)
    ]
    return rows, given


def attention(x, heads, project, out):
    """Of rows (n, D): queries, keys and values of ``heads``."""
    q, k, v = project(x).unflatten(-1, (3, heads, -1)).unbind(-3)
    weight = torch.einsum("ihd,jhd->hij", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return out(torch.einsum("hij,jhd->ihd", weight, v).flatten(1))


@pytest.mark.parametrize(
    ("shape", "keep", "protect"),
    [
        (Shape(3, 5, 4, 6), 0.1, True),
        (Shape(2, 1, 3, 5), 0.1, False),
        (Shape(4, 0, 4, 4), 0.8, True),
        (Shape(3, 2, 1, 2), 0.5, True),
    ],
)
def test_a_lone_attention_over_frames_equals_a_plain_loop(shape, keep, protect):
    """Rows of two videos merge, attend, and are copied back; the rest of their places is never attended to."""
    torch.manual_seed(0)
    n, heads = shape.frames * shape.each, 2
    project, out = nn.Linear(8, 24), nn.Linear(8, 8)
    videos = torch.randn(2, n, 8)
    method = FastVGGT(keep=keep, protect=protect)
    cells = method.chosen(shape)
    plan = method.merged(videos, shape, cells).check(2, n)
    merged = plan.merge(videos)
    found = plan.copy_back(torch.stack([attention(x, heads, project, out) for x in merged]))
    for x, mine in zip(videos, found):
        rows, given = rows_by_hand(x, shape, cells, keep, protect)
        assert len(rows) == plan.count
        whole = attention(torch.stack([x[own].mean(0) for own in rows]), heads, project, out)[given]
        torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-5)


def test_a_third_is_left_of_long_videos():
    shape = Shape(8, 5, 16, 16)
    n = shape.frames * shape.each
    method = FastVGGT()
    plan = method.merged(torch.randn(1, n, 4), shape, method.chosen(shape))
    hubs = int(method.destinations(shape, method.chosen(shape)).sum())
    assert hubs == shape.each + 7 * (5 + 64)
    assert plan.count == hubs + len(every_tenth(n))
    assert plan.count < 0.5 * n


@pytest.mark.parametrize("name", ["timm", "timm_registers", "clip", "siglip", "open_clip"])
@torch.no_grad()
def test_towers_whose_blocks_attend_over_frames(name):
    """Against the same attention over frames in which two rows of 68 or so merge: fewer FLOPs, other rows, as many outside."""
    model, pixels = tower(name, 8)

    def read(x):
        found = model(x)
        return found if isinstance(found, torch.Tensor) else found.last_hidden_state

    with tr.wrapped(model, FastVGGT(keep=0.96, protect=False)):
        joined, plain = read(pixels), tr.report(model)
    with tr.wrapped(model, FastVGGT()):
        both, less = read(pixels), tr.report(model)
        assert less.tokens_kept == less.tokens_in == [[64], [64]]
        alone = read(pixels[4:])
    assert less.flops < plain.flops
    scale = joined.abs().max().item()
    assert both.shape == joined.shape
    assert not torch.allclose(both, joined, atol=1e-3 * scale)
    torch.testing.assert_close(both[4:], alone, atol=1e-4 * scale, rtol=1e-4)


@torch.no_grad()
def test_a_full_budget_changes_nothing():
    model, pixels = tower("clip", 4)
    bare = model(pixels).last_hidden_state
    with tr.wrapped(model, "fastvggt", keep=1.0):
        assert torch.equal(model(pixels).last_hidden_state, bare)


def test_one_pattern_for_all_blocks_and_videos():
    shape = Shape(4, 5, 6, 8)
    assert torch.equal(FastVGGT().chosen(shape), FastVGGT(keep=0.5).chosen(shape))
    assert FastVGGT(cells="first").chosen(shape).sum() == 0
    counts = torch.bincount(FastVGGT().chosen(Shape(60, 0, 20, 20)).flatten(), minlength=4)
    assert (counts > 0.9 * counts.sum() / 4).all()
    assert not torch.equal(FastVGGT().chosen(shape), FastVGGT(seed=34).chosen(shape))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"keep": 64}, "keep=64; allowed: a float"),
        ({"joins": 1}, "joins=1; allowed: an int >= 2"),
        ({"cells": "last"}, "cells='last'; allowed: 'random', 'first'"),
        ({"odd": "drop"}, "odd='drop'; allowed: 'cut', 'released'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_not_offered_is_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        FastVGGT(**parameters)


@torch.no_grad()
def test_what_cannot_attend_over_frames_is_refused():
    model, pixels = tower("timm", 6)
    with tr.wrapped(model, "fastvggt"), pytest.raises(ValueError, match="6 frames arrive where 4 neighbours"):
        model(pixels)
    with (
        tr.wrapped(model, tr.ToMe(r=1, proportional=False), FastVGGT()),
        pytest.raises(ValueError, match="some merged or left before"),
    ):
        model(pixels[:4])
    with pytest.raises(ValueError, match="encodes each by itself"):
        tr.wrap(reduced.model("llava"), "fastvggt")
