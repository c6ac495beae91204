"""EVS, VidCom2 and DyCoke, which drop what resembles the frame before or the whole, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scripts import script
from torch import Tensor
from video_plans import SIZES, cosine, footage, kept, planned

import tokenreduce as tr
from tokenreduce.layout import Layout

PLAIN = script("benchmarks/plain_video.py").PLAIN


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.75, 11])
def test_evs(frames: int, n: int, keep: float | int) -> None:
    x = footage(frames, n)
    k = keep if isinstance(keep, int) else round(keep * frames * n)
    assert kept(planned(tr.EVS(keep=keep), x[None])[1]) == PLAIN["evs"](x, x[..., 0], min(k, frames * n))


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


@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.25, 0.475, 0.8])
def test_dycoke(frames: int, n: int, keep: float) -> None:
    x = footage(frames, n)
    assert kept(planned(tr.DyCoke(keep=keep), x[None])[1]) == PLAIN["dycoke"](x, x[..., 0], round(keep * frames * n))


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
