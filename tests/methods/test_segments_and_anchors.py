"""FlashVID and FastVID, which cut a video into segments, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from video_plans import FACTS, SIZES, cosine, footage, kept, planned

import tokenreduce as tr
from tokenreduce.anchor_merging import absorbed, anchors, shares
from tokenreduce.layout import Layout
from tokenreduce.redundancy_trees import grown
from tokenreduce.tokens import VisualTokens
from tokenreduce.video_segments import rank_within, shared_within


@pytest.mark.parametrize("count", ["direct", "subtree"])
def test_chains_through_frames(count: str) -> None:
    draw = torch.Generator().manual_seed(6)
    x, joins = torch.randn(7, 5, 4, generator=draw), torch.rand(7, 5, generator=draw) < 0.7
    parent = torch.randint(5, (7, 5), generator=draw)
    joins[0] = False
    found = grown(x, joins, parent, count)
    rows, weight = x.clone(), torch.ones(7, 5)
    for t in range(6, 0, -1):  # the released sweep, from the last frame on
        for p in range(5):
            if joins[t, p]:
                rows[t - 1, parent[t, p]] += rows[t, p]
                weight[t - 1, parent[t, p]] += 1 if count == "direct" else weight[t, p]
    for t in range(7):
        for p in range(5):
            if not joins[t, p]:
                torch.testing.assert_close(found.rows[t * 5 + p], rows[t, p] / weight[t, p])


def test_a_thing_that_moves_is_one_token() -> None:
    frames, n = 6, 9
    x = torch.eye(frames * n, 64).view(frames, n, 64).clone()  # no two tokens alike
    thing = torch.ones(64)
    for t in range(frames):
        x[t, (2 * t) % n] = thing + 0.01 * t
    attention = torch.full((frames, n), 0.1)
    for t in range(frames):
        attention[t, (2 * t) % n] = 0.0  # the thing is never picked
    method = tr.FlashVID(inner_keep=1.0, segment_threshold=None, picks="attn", count="subtree")
    made = method.compressed(x, attention, torch.full((frames,), 8))
    own = [int(made.assign[t * n + (2 * t) % n]) for t in range(frames)]
    assert len(set(own)) == 1
    assert int(made.source[own[0]]) < n  # of the first frame


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.2, 0.6, 7])
def test_flashvid_averages_its_budget_over_layers(frames: int, n: int, keep: float | int) -> None:
    method = tr.FlashVID(keep=keep, layer=5)
    x = footage(frames, n)[None]
    _, plan = planned(method, x)
    entering, whole = len(kept(plan)), frames * n
    step = method.plan(FACTS)[1]
    tokens = VisualTokens(
        torch.randn(1, entering, 16),
        Layout(1, n, frames=frames, medium="video"),
        "llm",
        5,
        amount=step.amount,
        signals={step.needs[0]: torch.rand(1, entering)},
    )
    left = method.reduce(tokens).num_kept
    goal = keep if isinstance(keep, int) else keep * whole
    assert abs((5 * entering + 3 * left) / 8 - min(goal, whole)) < 1


def test_shares_within_groups() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert shared_within(group, torch.tensor([3, 3, 4, 1, 5, 2]), torch.tensor([5, 3, 9])).tolist() == [
        2,
        1,
        2,
        1,
        2,
        2,
    ]
    assert rank_within(group, torch.tensor([1.0, 3.0, 3.0, 0.0, 9.0, 5.0])).tolist() == [2, 0, 1, 1, 0, 0]


def test_anchors_are_counted_from_the_end_of_a_segment() -> None:
    segment = torch.tensor([0] * 7 + [1] * 2 + [2])
    assert anchors(segment, torch.ones(10, dtype=torch.bool), 3).tolist() == [x == "x" for x in "x..x..x.xx"]
    valid = torch.tensor([True, False, True, True, False, True, True, False, True, True])
    assert anchors(segment, valid, 2).tolist() == [x == "x" for x in "x..x..x.xx"]


def test_fastvid_averages_into_the_peaks_of_its_segment() -> None:
    x, method = footage(9, 8, seed=2), tr.FastVID(keep=0.3, least_segments=3, tau=-1.0, period=2, variant="sequential")
    attention = torch.rand(9, 8, generator=torch.Generator().manual_seed(7))
    segment, valid = method.segmented(x.mean(dim=1))
    given = shares(torch.full((9,), 3), segment, valid, 8, method.context, method.period)
    assert (given.salient + given.centres).sum() == 27
    made = absorbed(x, attention, segment, given, neighbours=4, beta=0.6, sources="sequential")
    for a in range(9):
        own = [p for p in range(8) if made.centre[a, p]]
        members: dict[int, list[Tensor]] = {p: [] for p in own}
        for t in range(9):
            for p in range(8):
                if own and segment[t] == segment[a] and not made.salient[t, p] and not (t == a and p in own):
                    members[max(own, key=lambda c, t=t, p=p: cosine(x[t, p], x[a, c]))].append(x[t, p])
        for p, found in members.items():
            w = max(1 / (len(found) + 1), 0.6)
            mixed = w * x[a, p] + (1 - w) * torch.stack(found).mean(dim=0) if found else x[a, p]
            torch.testing.assert_close(made.rows[a * 8 + p], mixed)


def test_frames_that_repeat_keep_nothing_by_themselves() -> None:
    x = footage(4, 6).repeat_interleave(3, dim=0)
    _, plan = planned(tr.FastVID(keep=0.25, same=0.999, least_segments=4), x[None])
    assert {place // 6 for place in kept(plan)} == {2, 5, 8, 11}
    assert len(kept(plan)) == 18
