"""CDPruner: relevance per image, the other sign, weighed against diversity, one text for each image, another epsilon."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, best, cosine, floats, normal


def greedy(x: np.ndarray, r: np.ndarray, k: int) -> list[int]:
    """By determinants of every candidate set, written out."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    kernel = np.outer(r, r) * (unit @ unit.T)
    order: list[int] = []
    for _ in range(k):
        gain = [
            -np.inf if i in order else np.linalg.slogdet(kernel[np.ix_([*order, i], [*order, i])])[1]
            for i in range(len(x))
        ]
        order += best(gain, 1)
    return order


def images(batch: int, n: int, k: int, segments: tuple[int, ...], more: dict) -> Case:
    x, seen = normal(batch, n, 20, seed=n), normal(batch, n, 6, seed=n + 1)
    text = normal(*segments, 6, seed=n + 2)
    sign, eps, theta = more.get("relevance_sign", -1), more.get("eps", 1e-6), more.get("theta")
    c = np.empty((batch, n))
    for b in range(batch):
        own = text[b] if text.ndim == 3 else text
        c[b] = [sign * np.mean([cosine(e, t) for t in own]) for e in seen[b]]
    alone = more.get("normalise_scope", "whole batch") in ("image", "tile", "per image", "per tile")
    low, high = (f(c, axis=1, keepdims=True) if alone else f(c) for f in (np.min, np.max))
    r = (c - low + eps) / (high - low)
    if theta is not None:
        r = np.exp(theta / (2 * (1 - theta)) * r)
    orders = [greedy(own, weight, k) for own, weight in zip(x, r)]
    expected = {
        "relevance": floats(r),
        "order": np.array(orders),
        "keep_indices": np.array([sorted(order) for order in orders]),
        "keep_mask": np.array([[i in order for i in range(n)] for order in orders]),
    }
    return {"features": x, "image_embeds": seen, "text_embeds": text}, {"keep": k, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "per_image": images(2, 40, 6, (2,), {"normalise_scope": "per image"}),
        "other_sign": images(2, 30, 5, (1,), {"relevance_sign": 1}),
        "weighed": images(1, 36, 6, (3,), {"theta": 0.7}),
        "a_text_each": images(2, 30, 6, (2, 2), {"normalise_scope": "tile"}),
        "another_epsilon": images(2, 26, 5, (2,), {"eps": 1e-2}),
    }
