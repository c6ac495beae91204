"""ZOO-Prune: other steps and ranks, few directions, rank and picks at once, views of unlike sizes, equal sensitivities."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, best, cosine, floats, normal

NEWLINE = -9999


def picks(x: np.ndarray, s: np.ndarray, k: int) -> list[int]:
    low, high = float(s.min()), float(s.max())
    w = [(v - low) / (high - low + 1e-8) if high > low else 1.0 for v in s.astype(np.float64)]
    order = best(w, 1)
    while len(order) < min(k, len(x)):
        score = [-np.inf if i in order else w[i] * min(1 - cosine(x[i], x[p]) for p in order) for i in range(len(x))]
        order += best(score, 1)
    return order


def cut(w: np.ndarray, rank: int | None) -> np.ndarray:
    u, s, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def project(x: np.ndarray, weights: dict[str, np.ndarray], rank: int | None = None) -> np.ndarray:
    h = x @ cut(weights["w1"], rank).T + weights["b1"].astype(np.float64)
    h = h * np.vectorize(lambda t: (1 + math.erf(t / math.sqrt(2))) / 2)(h)
    return h @ cut(weights["w2"], rank).T + weights["b2"].astype(np.float64)


def sensitivity(x: np.ndarray, g: np.ndarray, weights: dict, h: float, rank: int | None) -> np.ndarray:
    u = g.astype(np.float64) / (np.linalg.norm(g.astype(np.float64), axis=1, keepdims=True) + 1e-12)
    moved = [
        np.linalg.norm(project(x + h * d, weights, rank) - project(x - h * d, weights, rank), axis=1) / (2 * h)
        for d in u
    ]
    return np.mean(moved, axis=0)


def whole(n: int, width: int, m: int, h: float, rank: int | None, keep: int | None) -> Case:
    x, g = normal(n, width, seed=n), normal(m, width, seed=n + 1)
    shapes = {"w1": (2 * width, width), "b1": (2 * width,), "w2": (width + 3, 2 * width), "b2": (width + 3,)}
    weights = {name: normal(*shape, seed=n + 2 + i, scale=0.4) for i, (name, shape) in enumerate(shapes.items())}
    s = sensitivity(x.astype(np.float64), g, weights, h, rank)
    params: dict[str, object] = {"function": "sensitivity" if keep is None else "full", "h": h}
    params |= {} if rank is None else {"rank": rank}
    expected = {"sensitivity": floats(s)}
    if keep is not None:
        order = picks(project(x.astype(np.float64), weights), s, keep)
        params["keep"] = keep
        expected |= {"order": np.array(order), "keep": np.array(sorted(order))}
    return {"tokens": x, "directions": g, **weights}, params, expected


def select(n: int, k: int, equal: bool) -> Case:
    x, s = normal(n, 6, seed=n), np.abs(normal(n, seed=n + 1))
    if equal:
        s = np.full(n, 0.5, dtype=np.float32)
    order = picks(x, s, k)
    expected = {"order": np.array(order), "keep": np.array(sorted(order))}
    return {"features": x, "sensitivity": s}, {"function": "select", "keep": k}, expected


def frames(sizes: list[int], rows: int, k: int) -> Case:
    """A base view, then tiles with a newline behind every ``rows`` tokens."""
    labels = [0] * sizes[0]
    for tile, size in enumerate(sizes[1:], 1):
        for i in range(size):
            labels += [tile] + [NEWLINE] * ((i + 1) % rows == 0)
    label = np.array(labels)
    x, s = normal(len(label), 5, seed=len(label)), np.abs(normal(len(label), seed=1))
    orders = []
    for view in range(len(sizes)):
        own = (label == view).nonzero()[0]
        orders.append([int(own[i]) for i in picks(x[own], s[own], k)])
    newlines = (label == NEWLINE).nonzero()[0]
    kept = [i for order in orders for i in order]
    expected = {
        "keep": np.unique([*kept, *newlines]),
        "keep_reference": np.unique([*kept, *(newlines - sizes[0])]),
    }
    if len({len(order) for order in orders}) == 1:
        expected["order"] = np.array(orders)
    return (
        {"features": x, "sensitivity": s, "frame_labels": label},
        {"function": "frames", "keep_per_frame": k},
        expected,
    )


def cases() -> dict[str, Case]:
    return {
        "coarse_step": whole(24, 10, 5, 0.1, None, None),
        "rank_three": whole(20, 12, 7, 0.02, 3, None),
        "rank_and_picks": whole(32, 9, 16, 0.01, 4, 8),
        "one_direction": whole(18, 8, 1, 0.05, None, 5),
        "equal_sensitivities": select(30, 6, True),
        "all_but_one": select(15, 14, False),
        "unlike_views": frames([20, 12, 4], 4, 3),
        "a_view_of_fewer": frames([16, 2, 9], 3, 4),
    }
