"""Methods for videos against loops over frames and places, written after the pages' formulas; and what they all share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.method import Method, ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.registry import registry
from tokenreduce.tokens import STAGES, VisualTokens

FACTS = ModelFacts(family="plain", stages=STAGES, tower_depth=4, feature_block=2, has_cls=False, decoder_depth=8)
VIDEO = [name for name, cls in registry().items() if cls.media == ("video",)]
SIZES = [(8, 12), (7, 5), (4, 9), (3, 6), (2, 7), (1, 8), (21, 4)]


def footage(frames: int, n: int, channels: int = 12, seed: int = 0) -> Tensor:
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
    method = registry()[name](keep=keep)
    whole = frames * n
    tokens, plan = planned(method, footage(frames, n)[None])
    wanted = max(method.leaving(tokens) or 0, method.least(tokens.layout))
    everything_joined = bool((plan.assign >= 0).all())
    found = len(kept(plan))
    assert found == min(wanted, whole) or (everything_joined and found < wanted)


@pytest.mark.parametrize("name", VIDEO)
def test_a_batch_equals_its_videos(name: str) -> None:
    videos = torch.stack([footage(9, 6, seed=s) for s in range(3)])
    method = registry()[name](keep=0.4)
    _, plan = planned(method, videos)
    for b, video in enumerate(videos):
        _, alone = planned(method, video[None])
        assert kept(plan, b) == kept(alone)
        assert torch.equal(plan.assign[b], alone.assign[0])


@pytest.mark.parametrize("name", VIDEO)
def test_a_still_video_goes_by_the_order_of_its_tokens(name: str) -> None:
    """Every tie is decided alike, whatever the dtype."""
    x = torch.randn(1, 6, 1, generator=torch.Generator().manual_seed(1)).expand(8, 6, 12)[None].clone()
    for dtype in (torch.float32, torch.bfloat16):
        _, plan = planned(registry()[name](keep=0.5), x.to(dtype))
        _, again = planned(registry()[name](keep=0.5), x.to(dtype))
        assert torch.equal(plan.assign, again.assign)


@pytest.mark.parametrize("name", VIDEO)
def test_frames_that_lack_tokens_are_refused(name: str) -> None:
    method = registry()[name](keep=0.5)
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
    change = [(-math.inf, t * n + p) for t in range(1) for p in range(n)]
    change += [(cosine(x[t, p], x[t - 1, p]) - 1, t * n + p) for t in range(1, frames) for p in range(n)]
    k = max(n, min(frames * n, keep if isinstance(keep, int) else round(keep * frames * n)))
    assert kept(planned(tr.EVS(keep=keep), x[None])[1]) == sorted(place for _, place in sorted(change)[:k])


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


def plain_dycoke(x: Tensor, k: int) -> list[int]:
    frames, n, _ = x.shape
    pruned = {}
    for t in range(frames):
        if t % 2 == 1:
            pruned[t] = t - 1
        elif t % 4 == 2 and t + 1 < frames and t // 4 * 4 + 4 <= frames:
            pruned[t] = t - 2
    whole = [t for t in range(frames) if t not in pruned]
    left, found = max(0, k - n * len(whole)), [t * n + p for t in whole for p in range(n)]
    for number, (t, before) in enumerate(sorted(pruned.items())):
        q = left // len(pruned) + (number < left % len(pruned))
        found += [t * n + p for _, p in sorted((cosine(x[t, p], x[before, p]), p) for p in range(n))[:q]]
    return sorted(found)


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.25, 0.475, 0.8])
def test_dycoke(frames: int, n: int, keep: float) -> None:
    x = footage(frames, n)
    assert kept(planned(tr.DyCoke(keep=keep), x[None])[1]) == plain_dycoke(x, round(keep * frames * n))


def test_dycoke_keeps_one_frame_in_four() -> None:
    with pytest.raises(ValueError, match=r"keep=0.2, but one frame in four stays whole; allowed: 0.25 to 1"):
        tr.DyCoke(keep=0.2)
    method = tr.DyCoke(keep=3)
    assert method.least(Layout(2, 3, frames=9, medium="video")) == 3 * 6
    assert method.least(Layout(2, 3, frames=1, medium="video")) == 6


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
