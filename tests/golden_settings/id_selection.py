"""ID-Selection: batches, the importance of what is left once all is exhausted, the formula without a floor, fractions."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, floats, normal


def taken(x: np.ndarray, a: np.ndarray, k: int, gamma: float, more: dict) -> tuple[list[int], list[float]]:
    n, score = len(x), a.astype(np.float64)
    if more.get("normalise", True):
        score = (score - score.min()) / (score.max() - score.min())
    weight = np.array([[np.exp(-gamma * max(0.0, 1 - cosine(p, q)) ** 2) for q in x] for p in x])
    np.fill_diagonal(weight, 1)
    order: list[int] = []
    values: list[float] = []
    while len(order) < k:
        free = [-np.inf if i in order else score[i] for i in range(n)]
        i = best(free, 1)[0]
        if free[i] <= 0 and more.get("exhausted") == "score":
            break
        order.append(i)
        values.append(score[i])
        score = score - weight[i] * score[i]
        if more.get("floor", "zero") == "zero":
            score = np.maximum(score, 0)
    order += [i for i in best(list(a), n) if i not in order][: k - len(order)]
    return order, values + [0.0] * (k - len(values))


def images(batch: int | None, n: int, k: int, gamma: float, more: dict, kinds: int | None = None) -> Case:
    x = normal(batch or 1, n, 8, seed=n)
    if kinds:
        x = x[:, np.arange(n) % kinds]
    a = attention_maps(batch or 1, n, seed=n + 1)
    found = [taken(own, b, k, gamma, more) for own, b in zip(x, a)]
    expected = {
        "order": np.array([order for order, _ in found]),
        "picked_scores": floats([values for _, values in found]),
        "keep": np.array([sorted(order) for order, _ in found]),
        "keep_mask": np.array([[i in order for i in range(n)] for order, _ in found]),
    }
    inputs = {"features": x, "scores": a}
    if batch is None:
        inputs, expected = ({name: value[0] for name, value in d.items()} for d in (inputs, expected))
    return inputs, {"keep": k, "gamma": gamma, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "batch": images(3, 40, 9, 20.0, {}),
        "exhausted_by_importance": images(2, 30, 12, 20.0, {"exhausted": "score"}, kinds=5),
        "exhausted_by_index": images(None, 24, 9, 20.0, {"exhausted": "index"}, kinds=4),
        "as_reported": images(2, 26, 6, 5.0, {"floor": "none", "normalise": False}),
        "nothing_suppressed": images(None, 30, 7, 1e6, {"normalise": False}),
        "fraction": images(2, 25, 8, 20.0, {"keep": 0.32}),
    }
