"""Methods for videos as their pages say them, frame by frame and place by place: what the long-video benchmark compares with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.float(), b.float(), dim=0))


def evs(x: Tensor, k: int) -> list[int]:
    """Kept tokens of ``x`` (T, N, D)."""
    frames, n, _ = x.shape
    change = [(-math.inf, p) for p in range(n)]
    change += [(cosine(x[t, p], x[t - 1, p]) - 1, t * n + p) for t in range(1, frames) for p in range(n)]
    return sorted(place for _, place in sorted(change)[: max(k, n)])


def dycoke(x: Tensor, k: int) -> list[int]:
    frames, n, _ = x.shape
    groups = frames // 4 * 4
    back = {t: 1 if t % 2 else 2 for t in range(frames) if t % 2 or (t % 4 == 2 and t < groups)}
    found = [t * n + p for t in range(frames) if t not in back for p in range(n)]
    left = max(0, k - len(found))
    for number, (t, step) in enumerate(back.items()):
        q = left // len(back) + (number < left % len(back))
        order = sorted((cosine(x[t, p], x[t - step, p]), p) for p in range(n))
        found += [t * n + p for _, p in order[:q]]
    return sorted(found)


def vidcom2(x: Tensor, k: int) -> list[int]:
    frames, n, channels = x.shape
    variance = x.float().flatten(0, 1).var(dim=0, correction=0)
    chosen = variance.sort(stable=True).indices[: channels // 2].sort().values
    y = F.normalize(x[..., chosen].float(), dim=-1)
    centre = y.mean(dim=1).mean(dim=0)

    def near(a: Tensor, b: Tensor) -> float:
        square = float((a - b).square().sum())
        return sum(math.exp(-square / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    score, away = [], []
    for t in range(frames):
        own = y[t].mean(dim=0)
        video = [near(y[t, p], centre) for p in range(n)]
        away.append(-sum(video) / n)
        score.append([video[p] + near(y[t, p], own) for p in range(n)])
    p = ((torch.tensor(away) - max(away)) / 0.01).softmax(dim=0)
    kept: list[tuple[float, int]] = []
    dropped: list[tuple[float, int]] = []
    for t in range(frames):
        count = max(1, round(min(1.0, k / (frames * n) * (1 + float(p[t] - p.mean()))) * n))
        order = sorted((score[t][i], t * n + i) for i in range(n))
        kept, dropped = kept + order[:count], dropped + order[count:]
    kept = sorted(kept)[:k]
    return sorted(place for _, place in kept + sorted(dropped)[: k - len(kept)])


PLAIN = {"evs": evs, "dycoke": dycoke, "vidcom2": vidcom2}
