"""PruMerge and PruMerge+: normalised sums, few neighbours, fewer tokens than neighbours, other ratios."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, best, cosine, floats, normal, softmax


def image(n: int, width: int, more: dict, peaks: int = 5, neighbours: int = 32) -> Case:
    query, keys, x = normal(width, seed=n), normal(1 + n, width, seed=n + 1), normal(1 + n, 9, seed=n + 2)
    query[:2] = 3 * width**0.5  # a few keys stand out along two channels that are quiet elsewhere
    keys[:, :2] *= 0.05
    keys[1 : 1 + 7 * peaks : 7, :2] += 1 + 0.1 * np.arange(peaks)[:, None]
    a = softmax(keys.astype(np.float64) @ query / width**0.5)[1:]
    plus, ratio = more.get("plus", False), more.get("ratio")
    if ratio is None:
        low, high = np.quantile(a, 0.25), np.quantile(a, 0.75)
        m = int((a > high + 1.5 * (high - low)).sum())
        assert m >= peaks
        m = int(n * (m / n))
    else:
        m = int(n * ratio)
    kept = best(list(a), m)
    if plus:
        stride = int(int(1 / (m / n)) / 3)
        kept = kept + [i for i in range(0, n - 1, stride) if i not in kept]
    k, rows, tokens = keys[1:], x[1:].astype(np.float64), []
    for i in kept:
        near = best([-2.0 if j == i else cosine(k[i], k[j]) for j in range(n)], min(neighbours, n - 1))
        total = rows[i] + sum(a[j] * rows[j] for j in near)
        tokens.append(total / (1 + a[near].sum()) if more.get("normalise") else total)
    rest = [j for j in range(n) if j not in kept]
    extra = sum(a[j] * rows[j] for j in rest)
    tokens.append(extra / a[rest].sum() if more.get("normalise") else extra)
    params = {"adaptive": ratio is None, "num_outliers": m, "neighbours": neighbours, **more}
    expected = {"keep_indices": np.array(kept), "tokens": floats(tokens), "scores": floats(a)}
    return {"query_cls": query, "keys": keys, "hidden": x}, params, expected


def cases() -> dict[str, Case]:
    return {
        "few_neighbours": image(60, 8, {}, neighbours=3),
        "plus_few_neighbours": image(90, 8, {"plus": True}, neighbours=5),
        "fewer_tokens_than_neighbours": image(25, 8, {"ratio": 0.2}, peaks=3),
        "a_third": image(50, 12, {"ratio": 1 / 3}),
        "normalised": image(64, 8, {"normalise": True}),
    }
