"""STORM, B-VLLM, LongVLM and the controls over time, which average or leave out frames, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from video_plans import FACTS, SIZES, footage, kept, planned

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.projection import Projector
from tokenreduce.tokens import VisualTokens


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 3, 5), (4, 4, 4), (1, 2, 3)])
@pytest.mark.parametrize("options", [{}, {"temporal_pool": 2, "spatial_pool": 2}, {"sample": "stride", "stride": 2}])
def test_storm(frames: int, height: int, width: int, options: dict) -> None:
    x = footage(frames, height * width)
    layout = Layout(height, width, frames=frames, medium="video")
    method = tr.Storm(**options)
    plan = method.reduce(VisualTokens(x.flatten(0, 1)[None], layout))
    grid, a, side = x.view(frames, height, width, -1), method.temporal_pool, method.spatial_pool
    wanted, places = [], []
    for t in range(0, frames, a)[:: method.stride if method.sample == "stride" else 1]:
        for r in range(0, height, side):
            for c in range(0, width, side):
                box = grid[t : t + a, r : r + side, c : c + side]
                wanted.append(box.reshape(-1, box.shape[-1]).mean(dim=0))
                places.append((t * height + r) * width + c)
    assert plan.source[0].tolist() == places
    torch.testing.assert_close(plan.carry(x.flatten(0, 1)[None])[0], torch.stack(wanted))


def test_what_storm_refuses() -> None:
    with pytest.raises(ValueError, match=r"keep=0.5 beside sample='stride'.*allowed: keep=None"):
        tr.Storm(keep=0.5, sample="stride")
    with pytest.raises(ValueError, match=r"offset=3 of 2 frames leaves none; allowed for this video: 0 to 1"):
        planned(tr.Storm(sample="stride", offset=3), footage(8, 4)[None])


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.75, 1])
def test_pooling_over_time_averages_even_stretches(frames: int, n: int, keep: float | int) -> None:
    x = footage(frames, n)
    _, plan = planned(tr.PoolTime(keep=keep), x[None])
    k = max(1, round(keep * frames * n)) if isinstance(keep, float) else keep
    assert len(kept(plan)) == k
    place = torch.arange(frames * n) % n
    for row in range(k):
        members = (plan.assign[0] == row).nonzero().flatten()
        if k >= n:  # one place, neighbouring frames
            assert set(place[members].tolist()) == {int(plan.source[0, row]) % n}
            assert members.diff().unique().tolist() in ([], [n])
            assert int(plan.source[0, row]) == int(members[0])
        else:
            assert len(members) % frames == 0
    sizes = torch.bincount(plan.assign[0])
    assert k < n or int(sizes.max()) <= -(-frames // (k // n))


def test_sampled_frames_are_whole() -> None:
    _, plan = planned(tr.SampleFrames(keep=17), footage(9, 5)[None])
    frame = [place // 5 for place in kept(plan)]
    assert [frame.count(t) for t in range(9)] == [0, 5, 0, 5, 0, 5, 0, 2, 0]


def test_frames_that_repeat_join_the_first_of_their_chain() -> None:
    views = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(3))
    shown = [0, 1, 0, 0, 2, 1]
    x = torch.stack([views[v] for v in shown])
    _, plan = planned(tr.BVLLM(keep=18, theta=0.9), x[None])
    assert plan.source[0].tolist() == [t * 6 + p for t in (0, 1, 4) for p in range(6)]
    torch.testing.assert_close(plan.carry(x.flatten(0, 1)[None])[0], x[[0, 1, 4]].flatten(0, 1))
    assert plan.assign[0].view(6, 6)[:, 0].tolist() == [0, 6, 0, 0, 12, 6]


def test_a_long_video_of_few_tokens_joins_more_frames() -> None:
    x = torch.randn(12, 4, 16, generator=torch.Generator().manual_seed(4))
    _, plan = planned(tr.BVLLM(keep=5, theta=1.0), x[None])
    assert len(kept(plan)) == 5
    assert len({place // 4 for place in kept(plan)}) == 5
    assert kept(plan)[0] < 4


@pytest.mark.parametrize("sizes", [False, True])
def test_merged_frames_are_means(sizes: bool) -> None:
    """Of means, or of everything they stand for: the same where rounds never join a token twice."""
    x = footage(5, 8)
    method = tr.BVLLM(keep=0.3, theta=0.6, sizes=sizes)
    _, plan = planned(method, x[None])
    found = plan.carry(x.flatten(0, 1)[None])[0]
    for row, member in enumerate(found):
        own = x.flatten(0, 1)[plan.assign[0] == row]
        assert bool((member <= own.amax(dim=0) + 1e-5).all())
        assert bool((member >= own.amin(dim=0) - 1e-5).all())
        if sizes:
            torch.testing.assert_close(member, own.mean(dim=0))


def plain_longvlm(x: Tensor, k: int, groups: int) -> list[set[int]]:
    """The groups of tokens of one segment (N, C), by hand."""
    rows = [({i}, x[i].double()) for i in range(len(x))]
    while len(rows) > k:
        half = len(rows) // 2
        r = half if half >= k else len(rows) - k
        a, b = rows[::2], rows[1::2]
        means = [torch.stack([row.view(groups, -1).mean(dim=0) for _, row in side]) for side in (a, b)]
        alike = F.normalize(means[0], dim=-1) @ F.normalize(means[1], dim=-1).T
        best, at = alike.max(dim=1)
        order = best.sort(descending=True, stable=True).indices.tolist()
        for i in order[:r]:
            members = b[int(at[i])][0] | a[i][0]
            b[int(at[i])] = (members, torch.stack([x[m].double() for m in sorted(members)]).mean(dim=0))
        rows = [a[i] for i in order[r:]] + b
    return [members for members, _ in rows]


@pytest.mark.parametrize(("frames", "segment", "keep"), [(6, 3, 0.2), (7, 3, 0.3), (4, 10, 3)])
def test_longvlm_merges_segment_by_segment(frames: int, segment: int, keep: float | int) -> None:
    x = footage(frames, 6)
    _, plan = planned(tr.LongVLM(keep=keep, segment=segment, groups=4), x[None])
    found = [set((plan.assign[0] == row).nonzero().flatten().tolist()) for row in range(plan.num_kept)]
    first, wanted = 0, []
    for part in x.split(segment):
        size = len(part) * 6
        count = len([rows for rows in found if min(rows) // (segment * 6) == first // (segment * 6)])
        wanted += [{first + m for m in rows} for rows in plain_longvlm(part.flatten(0, 1), count, 4)]
        first += size
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))
    assert plan.source[0].tolist() == sorted(plan.source[0].tolist())


def test_longvlm_puts_class_rows_of_five_blocks_in_front() -> None:
    facts = replace(FACTS, has_cls=True, tower_prefix=1, tower_depth=8)
    method = tr.LongVLM(keep=12, segment=4, groups=4)
    (step,) = method.plan(facts)
    x, draw = footage(8, 6), torch.Generator().manual_seed(5)
    signals = {need: torch.randn(1, 8, 1, 16, generator=draw) for need in step.needs[1:]}
    tokens = VisualTokens(
        x.flatten(0, 1)[None],
        Layout(2, 3, frames=8),
        signals={step.needs[0]: x.flatten(0, 1)[None], **signals},
        projector=Projector(lambda rows: rows + 1),
    )
    plan = method.checked(tokens)
    assert plan.features is not None
    assert plan.source[0, :5].tolist() == [-1] * 5
    assert plan.num_kept == 12
    for row, need in enumerate(step.needs[1:]):
        torch.testing.assert_close(plan.features[0, row], signals[need][0, :, 0].mean(dim=0) + 1)
    assert [need.block for need in step.needs[1:]] == [3, 4, 5, 6, 7]
    assert method.substitutes(facts) == ()
    assert method.substitutes(FACTS)
    with pytest.raises(ValueError, match=r"global_tokens=2, but the vision tower.*global_tokens=0"):
        tr.LongVLM(global_tokens=2).plan(FACTS)
