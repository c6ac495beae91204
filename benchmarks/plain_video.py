"""Methods for videos as their pages say them, frame by frame and place by place: what the long-video benchmark compares with.

Each takes tokens ``x`` (T, N, D), attention ``a`` (T, N) and the count k, and returns the places kept, at the default parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce import anchor_merging
from tokenreduce.budgets import Budget
from tokenreduce.eval.bench.ops import density_peaks, temporal_segmentation
from tokenreduce.methods.longvlm import shares as longvlm_shares
from tokenreduce.temporal_redundancy import allot
from tokenreduce.video_segments import shared_within


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.float(), b.float(), dim=0))


def evs(x: Tensor, a: Tensor, k: int) -> list[int]:
    frames, n, _ = x.shape
    change = [(-math.inf, p) for p in range(n)]
    change += [(cosine(x[t, p], x[t - 1, p]) - 1, t * n + p) for t in range(1, frames) for p in range(n)]
    return sorted(place for _, place in sorted(change)[: max(k, n)])


def dycoke(x: Tensor, a: Tensor, k: int) -> list[int]:
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


def vidcom2(x: Tensor, a: Tensor, k: int) -> list[int]:
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


def holitom(x: Tensor, a: Tensor, k: int) -> list[int]:
    frames, n, _ = x.shape
    still = torch.stack([F.cosine_similarity(x[t], x[t + 1], dim=-1) for t in range(frames - 1)]) > 0.8
    parts = [
        (s, e, still[s : e - 1].all(dim=0) & torch.tensor(e - s > 1)) for s, e in temporal_segmentation.plain(still)[0]
    ]
    shares = allot([(e - s, int(held.sum())) for s, e, held in parts], n, Budget(k), exact=True)
    found = []
    for (start, stop, held), share in zip(parts, shares):
        static, moving = held.nonzero().flatten(), (~held).nonzero().flatten()
        if share[0]:
            mean = torch.stack([x[t, static] for t in range(start, stop)]).mean(dim=0)
            score, distance = density_peaks.plain(mean[None])
            centres = score[0].sort(descending=True, stable=True).indices[: share[0]]
            nearest = distance[0][:, centres].argmin(dim=1)
            for row, centre in enumerate(centres):
                members = (nearest == row).nonzero().flatten()
                _ = 0.6 * mean[centre] + 0.4 * mean[members].mean(dim=0)
                found.append(start * n + int(static[centre]))
        for t, q in zip(range(start, stop), share[1:]):
            order = a[t, moving].sort(descending=True, stable=True).indices[:q]
            found += [t * n + int(p) for p in moving[order]]
    return sorted(found)


def cut(x: Tensor, least: int = 8, threshold: float = 0.9) -> list[tuple[int, int]]:
    """Segments of frames, where the mean tokens of neighbouring ones differ."""
    mean = [frame.mean(dim=0) for frame in x]
    alike = [cosine(mean[t], mean[t + 1]) for t in range(len(x) - 1)]
    lowest = sorted(range(len(alike)), key=lambda t: alike[t])[: least - 1]
    ends = [t + 1 for t, value in enumerate(alike) if value < threshold or t in lowest]
    return list(zip([0, *ends], [*ends, len(x)]))


def fastvid(x: Tensor, a: Tensor, k: int) -> list[int]:
    """A product of every anchor with all tokens of its segment, and a mean for every centre."""
    frames, n, _ = x.shape
    parts = cut(x)
    segment = torch.cat([torch.full((e - s,), i) for i, (s, e) in enumerate(parts)])
    budget = torch.tensor([k // frames + (t < k % frames) for t in range(frames)])
    given = anchor_merging.shares(budget, segment, torch.ones(frames, dtype=torch.bool), n, 0.4, 4)
    found, salient = [], []
    for t in range(frames):
        order = a[t].sort(descending=True, stable=True).indices[: int(given.salient[t])]
        salient.append(torch.zeros(n, dtype=torch.bool).index_fill_(0, order, True))
        found += [t * n + int(p) for p in order]
    for start, stop in parts:
        rest = torch.cat([x[t, ~salient[t]] for t in range(start, stop)])
        unit = F.normalize(rest, dim=-1)
        for t in range(start, stop):
            if not given.centres[t]:
                continue
            left = (~salient[t]).nonzero().flatten()
            score, _ = density_peaks.plain(x[t, left][None], neighbours=4)
            centres = left[score[0].sort(descending=True, stable=True).indices[: int(given.centres[t])]]
            nearest = (unit @ F.normalize(x[t, centres], dim=-1).T).argmax(dim=1)
            for row, centre in enumerate(centres):
                members = rest[nearest == row]
                weight = max(1 / (len(members) + 1), 0.6)
                _ = weight * x[t, centre] + (1 - weight) * members.mean(dim=0)
                found.append(t * n + int(centre))
    return sorted(found)


def longvlm(x: Tensor, a: Tensor, k: int) -> list[int]:
    """Ten frames at a time; the tokens of each round join one by one."""
    frames, n, _ = x.shape
    spans = [(s, min(s + 10, frames)) for s in range(0, frames, 10)]
    found: list[int] = []
    for (start, stop), left in zip(spans, longvlm_shares([e - s for s, e in spans], n, k)):
        rows, size = x[start:stop].flatten(0, 1), torch.ones((stop - start) * n)
        place = list(range(start * n, stop * n))
        while len(rows) > left:
            r = min(len(rows) - left, len(rows) // 2)
            unit = F.normalize(rows.unflatten(1, (16, -1)).mean(dim=1), dim=-1)
            pairs = []
            for i in range(0, len(rows), 2):
                best, partner = (unit[1::2] @ unit[i]).max(dim=0)
                pairs.append((float(-best), i, 2 * int(partner) + 1))
            pairs.sort()
            total = rows * size[:, None]
            for _, i, j in pairs[:r]:
                total[j] += total[i]
                size[j] += size[i]
            rows = total / size[:, None]
            order = [i for _, i, _ in pairs[r:]] + list(range(1, len(rows), 2))
            rows, size, place = rows[order], size[order], [place[i] for i in order]
        found += place
    return sorted(found)


def flashvid(x: Tensor, a: Tensor, k: int) -> list[int]:
    """Picks one by one, a parent for every token, a mean for every tree and cluster."""
    frames, n, _ = x.shape
    found: list[int] = []
    budget = [k // frames + (t < k % frames) for t in range(frames)]
    for start, stop in cut(x):
        event = x[start:stop].mean(dim=1).mean(dim=0)
        picked = torch.zeros(stop - start, n, dtype=torch.bool)
        for t in range(start, stop):
            unit = F.normalize(x[t], dim=-1)
            distance, weight = (1 - unit @ unit.T).clamp_min(0), (a[t] * (x[t] @ event)).clamp_min(0)
            away = distance.clone().fill_diagonal_(math.inf).amin(dim=1) * weight
            taken = [int(away.argmax())]
            while len(taken) < math.ceil(budget[t] * 0.7):
                gain = torch.stack([distance[i] for i in taken]).amin(dim=0) * weight
                gain[taken] = -math.inf
                taken.append(int(gain.argmax()))
            picked[t - start, taken] = True
        parent: dict[int, tuple[float, int]] = {}
        for t in range(start + 1, stop):
            before = F.normalize(x[t - 1], dim=-1)
            for p in range(n):
                alike = (before @ F.normalize(x[t, p], dim=0)).masked_fill(picked[t - 1 - start], -1.0)
                if not picked[t - start, p]:
                    parent[t * n + p] = (float(alike.max()), (t - 1) * n + int(alike.argmax()))
        total = sum(budget[start:stop])
        value = sorted((best for best, _ in parent.values()), reverse=True)
        value += [-1.0] * ((stop - start) * n - len(value))
        joins = sum(best > 0.8 for best in value)
        limit = max(value[len(value) - total - 1], -1 + 1e-6) if len(value) - joins < total else 0.8
        sums, count = x[start:stop].flatten(0, 1).clone(), [1] * ((stop - start) * n)
        joined = {i for i, (best, _) in parent.items() if best > limit and stop - start > 1}
        for i in sorted(joined, reverse=True):
            own, up = i - start * n, parent[i][1] - start * n
            sums[up] += sums[own]
            count[up] += 1
        rows = (sums / torch.tensor(count)[:, None]).unflatten(0, (stop - start, n))
        left = [
            [p for p in range(n) if not picked[t - start, p] and t * n + p not in joined] for t in range(start, stop)
        ]
        rest = torch.tensor([total - int(picked.sum())])
        group = torch.zeros(stop - start, dtype=torch.long)
        centres = shared_within(group, torch.tensor([len(own) for own in left]), rest)
        for t, places, q in zip(range(start, stop), left, centres.tolist()):
            found += [t * n + int(p) for p in picked[t - start].nonzero().flatten()]
            if q:
                score, distance = density_peaks.plain(rows[t - start, places][None], neighbours=min(q, 7))
                peaks = score[0].sort(descending=True, stable=True).indices[:q]
                nearest = distance[0][:, peaks].argmin(dim=1)
                for row, peak in enumerate(peaks):
                    _ = rows[t - start, places][nearest == row].mean(dim=0)
                    found.append(t * n + places[int(peak)])
    return sorted(found)


PLAIN = {
    "evs": evs,
    "dycoke": dycoke,
    "vidcom2": vidcom2,
    "longvlm": longvlm,
    "holitom": holitom,
    "fastvid": fastvid,
    "flashvid": flashvid,
}
