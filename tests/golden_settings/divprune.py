"""DivPrune: batches, a fraction of half a token more, duplicates, everything but one."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, cosine, normal


def farthest(x: np.ndarray, k: int) -> list[int]:
    distance = [[1 - cosine(a, b) for b in x] for a in x]
    nearest = [min(row[j] for j in range(len(x)) if j != i) for i, row in enumerate(distance)]
    order = [max(range(len(x)), key=lambda i: (nearest[i], -i))]
    while len(order) < k:
        left = [i for i in range(len(x)) if i not in order]
        order.append(max(left, key=lambda i: (min(distance[i][j] for j in order), -i)))
    return order


def images(batch: int | None, n: int, k: int, params: dict) -> Case:
    x = normal(batch or 1, n, 7, seed=n)
    orders = [farthest(own, k) for own in x]
    expected = {
        "order": np.array(orders),
        "keep_indices": np.array([sorted(order) for order in orders]),
        "keep_mask": np.array([[i in order for i in range(n)] for order in orders]),
        "tokens": np.stack([own[sorted(order)] for own, order in zip(x, orders)]),
    }
    if batch is None:
        x, expected = x[0], {name: value[0] for name, value in expected.items()}
    return {"tokens": x}, params, expected


def cases() -> dict[str, Case]:
    return {
        "batch": images(3, 36, 7, {"keep": 7}),
        "half_to_even": images(None, 25, 2, {"subset_ratio": 0.1, "keep": 2}),
        "all_but_one": images(2, 14, 13, {"keep": 13}),
        "one": images(2, 20, 1, {"keep": 1}),
        "fraction": images(2, 21, 8, {"keep": 0.37}),
    }
