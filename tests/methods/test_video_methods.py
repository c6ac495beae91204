"""Methods for videos against loops over frames and places, written after the pages' formulas; and what they all share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenreduce as tr
from tokenreduce.anchor_merging import absorbed, anchors, shares
from tokenreduce.eval.bench.plain_video import PLAIN
from tokenreduce.layout import Layout
from tokenreduce.method import Method, ModelFacts
from tokenreduce.projection import Projector
from tokenreduce.reduction import Reduction
from tokenreduce.redundancy_trees import grown
from tokenreduce.registry import registry
from tokenreduce.tokens import STAGES, VisualTokens
from tokenreduce.video_segments import rank_within, shared_within

FACTS = ModelFacts(family="plain", stages=STAGES, tower_depth=4, feature_block=2, has_cls=False, decoder_depth=8)
VIDEO = [name for name, cls in registry().items() if cls.media == ("video",) and cls.stages != ("pixels",)]
#: where a second step shares the budget, the first alone
ALONE: dict[str, dict] = {"flashvid": {"inner_keep": 1.0}}
SIZES = [(8, 12), (7, 5), (4, 9), (3, 6), (2, 7), (1, 8), (21, 4)]


def footage(frames: int, n: int, channels: int = 16, seed: int = 0) -> Tensor:
    """(T, N, C): most places only shiver from frame to frame, and now and then all change."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, n, channels, generator=draw)
    for t in range(1, frames):
        still = torch.rand(n, 1, generator=draw) < (0.0 if t % 5 == 4 else 0.7)
        x[t] = torch.where(still, x[t - 1] + 0.1 * x[t], x[t])
    return x


def planned(method: Method, x: Tensor, stage: int = 0, seed: int = 0) -> tuple[VisualTokens, Reduction]:
    """What ``method`` answers to videos ``x`` (B, T, N, C); signals are random, of the shapes that it asks for."""
    draw = torch.Generator().manual_seed(seed)
    batch, frames, n, _ = x.shape
    step = method.plan(FACTS)[stage]
    tokens = VisualTokens(
        x.flatten(1, 2),
        Layout(1, n, frames=frames, medium="video"),
        step.stage,
        step.layer,
        amount=step.amount,
        signals={need: torch.rand(1, frames * n, generator=draw).expand(batch, -1) for need in step.needs},
    )
    return tokens, method.checked(tokens)


def kept(plan: Reduction, b: int = 0) -> list[int]:
    rows = plan.source[b] if plan.valid is None else plan.source[b][plan.valid[b]]
    return sorted(rows.tolist())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a[None].double(), b[None].double())[0])


# ------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.3, 0.55])
def test_counts(name: str, frames: int, n: int, keep: float) -> None:
    method = registry()[name](keep=keep, **ALONE.get(name, {}))
    whole = frames * n
    tokens, plan = planned(method, footage(frames, n)[None])
    wanted = max(method.leaving(tokens) or 0, method.always_left(tokens.layout))
    everything_joined = bool((plan.assign >= 0).all())
    found = len(kept(plan))
    assert found == min(wanted, whole) or (everything_joined and found < wanted)


@pytest.mark.parametrize("name", VIDEO)
def test_a_batch_equals_its_videos(name: str) -> None:
    videos = torch.stack([footage(9, 6, seed=s) for s in range(3)])
    method = registry()[name](keep=0.4, **ALONE.get(name, {}))
    _, plan = planned(method, videos)
    for b, video in enumerate(videos):
        _, alone = planned(method, video[None])
        assert kept(plan, b) == kept(alone)
        assert torch.equal(plan.assign[b], alone.assign[0])


@pytest.mark.parametrize("name", VIDEO)
def test_a_still_video_goes_by_the_order_of_its_tokens(name: str) -> None:
    """Every tie is decided alike, whatever the dtype."""
    x = torch.randn(1, 6, 1, generator=torch.Generator().manual_seed(1)).expand(8, 6, 16)[None].clone()
    for dtype in (torch.float32, torch.bfloat16):
        _, plan = planned(registry()[name](keep=0.5, **ALONE.get(name, {})), x.to(dtype))
        _, again = planned(registry()[name](keep=0.5, **ALONE.get(name, {})), x.to(dtype))
        assert torch.equal(plan.assign, again.assign)


@pytest.mark.parametrize("name", VIDEO)
def test_frames_that_lack_tokens_are_refused(name: str) -> None:
    method = registry()[name](keep=0.5, **ALONE.get(name, {}))
    step = method.plan(FACTS)[0]
    layout = Layout(2, 2, frames=2, cells=(0, 1, 2, 3, 4, 6), medium="video")
    tokens = VisualTokens(
        torch.randn(1, 6, 8), layout, amount=step.amount, signals={need: torch.rand(1, 6) for need in step.needs}
    )
    with pytest.raises(ValueError, match=rf"method='{name}' compares whole frames.*allowed: first"):
        method.reduce(tokens)


# ------------------------------------------------------------------------- evs


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.75, 11])
def test_evs(frames: int, n: int, keep: float | int) -> None:
    x = footage(frames, n)
    k = keep if isinstance(keep, int) else round(keep * frames * n)
    assert kept(planned(tr.EVS(keep=keep), x[None])[1]) == PLAIN["evs"](x, min(k, frames * n))


# --------------------------------------------------------------------- vidcom2


def plain_vidcom2(x: Tensor, share: float, k: int | None) -> list[int]:
    """Frame by frame and token by token, in float64; ``k`` None: as each frame rounds."""
    frames, n, channels = x.shape
    x = x.double()
    variance = [(float(x[..., c].var(correction=0)), c) for c in range(channels)]
    chosen = [c for _, c in sorted(variance)[: channels // 2]]
    y = F.normalize(x[..., chosen], dim=-1)
    centre = y.mean(dim=(0, 1))

    def near(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).square().sum()) / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video = [[near(y[t, p], centre) for p in range(n)] for t in range(frames)]
    score = [[video[t][p] + near(y[t, p], y[t].mean(dim=0)) for p in range(n)] for t in range(frames)]
    away = torch.tensor([-sum(row) / n for row in video], dtype=torch.float64)
    p = ((away - away.max()) / 0.01).softmax(dim=0)
    found = []
    for t in range(frames):
        count = max(1, round(min(1.0, share * (1 + float(p[t] - p.mean()))) * n))
        found += [(score[t][i], t * n + i) for i in sorted(range(n), key=lambda i, t=t: score[t][i])[:count]]
    if k is None:
        return sorted(place for _, place in found)
    others = {t * n + i: score[t][i] for t in range(frames) for i in range(n)}
    for _, place in found:
        del others[place]
    found = sorted(found)[:k]
    found += sorted((s, place) for place, s in others.items())[: k - len(found)]
    return sorted(place for _, place in found)


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.75])
def test_vidcom2(frames: int, n: int, keep: float) -> None:
    x = footage(frames, n, channels=13)
    k = max(frames, round(keep * frames * n))
    assert kept(planned(tr.VidCom2(keep=keep), x[None])[1]) == plain_vidcom2(x, keep, k)
    assert kept(planned(tr.VidCom2(keep=keep, exact=False), x[None])[1]) == plain_vidcom2(x, keep, None)


# ---------------------------------------------------------------------- dycoke


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.25, 0.475, 0.8])
def test_dycoke(frames: int, n: int, keep: float) -> None:
    x = footage(frames, n)
    assert kept(planned(tr.DyCoke(keep=keep), x[None])[1]) == PLAIN["dycoke"](x, round(keep * frames * n))


def test_dycoke_keeps_one_frame_in_four() -> None:
    with pytest.raises(ValueError, match=r"keep=0.2, but one frame in four stays whole; allowed: 0.25 to 1"):
        tr.DyCoke(keep=0.2)
    method = tr.DyCoke(keep=3)
    assert method.always_left(Layout(2, 3, frames=9, medium="video")) == 3 * 6
    assert method.always_left(Layout(2, 3, frames=1, medium="video")) == 6


def test_dycoke_in_the_order_of_the_release() -> None:
    x = footage(6, 5)
    _, plan = planned(tr.DyCoke(keep=0.7, output_order="reference"), x[None])
    frame, place = plan.source[0] // 5, plan.source[0] % 5
    assert frame.tolist() == sorted(frame.tolist())
    for t, before in ((0, None), (1, 0), (3, 2), (4, None), (5, 4)):
        own = place[frame == t].tolist()
        like = own if before is None else [cosine(x[t, p], x[before, p]) for p in own]
        assert like == sorted(like)
    assert plan.positions == "renumber"


# ----------------------------------------------------------------------- storm


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


# ---------------------------------------------------------------------- b_vllm


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


# --------------------------------------------------------------------- longvlm


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


# -------------------------------------------------------------------- flashvid


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


# --------------------------------------------------------------------- fastvid


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
