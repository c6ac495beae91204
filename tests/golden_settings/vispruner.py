"""VisPruner: other steps, odd residuals, a single diverse token, fractions."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, floats, normal


def selected(score: list[float], x: np.ndarray, k: int, important: int, step: int) -> tuple[list[int], list[int]]:
    order = best(score, len(score))
    left, wanted = order[important:], k - important
    while wanted and len(left) > wanted:
        r = min(step, len(left) - wanted, len(left) // 2)
        a, b = left[0::2], left[1::2]
        alike = [max(cosine(x[i], x[j]) for j in b) for i in a]
        left = [a[i] for i in best(alike, len(a))[r:]] + b
    return order[:important], sorted(order[:important] + (left if wanted else []))


def images(batch: int, n: int, k: int, keep: float | int, ratio: float, step: int) -> Case:
    maps = attention_maps(batch, 3, 1 + n, seed=n)[..., 1:]
    x = normal(batch, 6, 10, seed=n + 1)[:, np.arange(n) % 6] + normal(batch, n, 10, seed=n + 2, scale=0.3)
    important = int(k * ratio)
    found = [selected(list(a.astype(np.float64).mean(axis=0)), own, k, important, step) for a, own in zip(maps, x)]
    expected = {
        "keep_indices": np.array([kept for _, kept in found]),
        "keep_mask": np.array([[i in kept for i in range(n)] for _, kept in found]),
        "important_mask": np.array([[i in first for i in range(n)] for first, _ in found]),
        "features": floats([own[kept] for own, (_, kept) in zip(x, found)]),
    }
    params = {"keep": keep, "important_ratio": ratio, "num_important": important, "step": step}
    return {"cls_attn": maps, "features": x}, params, expected


def cases() -> dict[str, Case]:
    return {
        "one_at_a_time": images(2, 33, 12, 12, 0.5, 1),
        "odd_residual": images(1, 40, 14, 14, 0.5, 8),
        "one_diverse": images(1, 31, 5, 5, 0.8, 8),
        "fraction": images(3, 25, 8, 0.32, 0.25, 3),
        "nothing_important": images(1, 29, 2, 2, 0.0, 100),
    }
