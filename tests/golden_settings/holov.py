"""HoloV: raster order, overflow handed on, more crops than tokens, a fraction, another weight of variance."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, attention_maps, best, normal


def crops(n: int, count: int) -> list[list[int]]:
    sizes = [n // count + (p < n % count) for p in range(count)]
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for end, size in zip(ends, sizes) if size]


def score(x: np.ndarray, a: np.ndarray, alpha: float) -> float:
    m = len(x)
    if m == 1:
        return float(a[0])
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
    s = unit @ unit.T
    np.fill_diagonal(s, 0)
    mean = s.sum(axis=1) / (m - 1)
    variance = ((s - mean[:, None]) ** 2).sum(axis=1) / (m - 1)
    own = 1000 * a
    g = np.abs(own).mean() / (np.abs(variance).mean() + 1e-6)
    return float((own + alpha * g * variance).mean())


def one(x: np.ndarray, a: np.ndarray, count: int, k: int, alpha: float) -> list[int]:
    """Tokens crop by crop, as released; too few where a crop has fewer than its share."""
    parts = crops(len(x), count)
    scores = [score(x[p], a[p], alpha) for p in parts]
    weight = [s / (sum(scores) + 1e-6) for s in scores]
    share = [math.floor(w * k) for w in weight]
    for p in best(weight, k - sum(share)):
        share[p] += 1
    found: list[int] = []
    for p, own in zip(parts, share):
        found += p if own >= len(p) else [p[i] for i in best(list(a[p]), own)]
    return found


def images(batch: int, n: int, count: int, k: int, more: dict) -> Case:
    x, a = normal(batch, n, 8, seed=n), attention_maps(batch, n, seed=n + 1)
    alpha, raster = more.get("alpha", 0.09), more.get("output_order") == "raster"
    found = [one(own.astype(np.float64), b.astype(np.float64), count, k, alpha) for own, b in zip(x, a)]
    found = [sorted(own) if raster else own for own in found]
    assert all(len(own) == k for own in found)
    expected = {"order": np.array(found), "tokens": np.stack([own[order] for own, order in zip(x, found)])}
    return {"tokens": x, "attn": a}, {"keep": k, "num_crops": count, "alpha": alpha, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "raster": images(2, 90, 4, 20, {"output_order": "raster"}),
        "no_variance": images(1, 70, 6, 16, {"alpha": 0.0}),
        "much_variance": images(2, 75, 6, 16, {"alpha": 3.0}),
        "fraction": images(1, 50, 3, 12, {"keep": 0.24}),
        "two_crops": images(1, 41, 2, 6, {}),
    }
