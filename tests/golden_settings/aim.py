"""AIM: rounds that take less than half, odd numbers, other temperatures and steps; and a Qwen2 of another schedule."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, best, cosine, floats, normal, softmax

HIDDEN = -1e30


def merged(x: np.ndarray, r: int) -> np.ndarray:
    r = min(r, len(x) // 2)
    even, odd = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    alike = [[cosine(x[a], x[b]) for b in odd] for a in even]
    partner = [best(row, 1)[0] for row in alike]
    order = best([max(row) for row in alike], len(even))
    into = [np.mean([x[b], *(x[even[i]] for i in order[:r] if partner[i] == j)], axis=0) for j, b in enumerate(odd)]
    return np.array([*(x[even[i]] for i in order[r:]), *into])


def merge(batch: int, n: int, counts: list[int]) -> Case:
    x = normal(batch, n, 9, seed=n)
    expected, rows = {}, [own.astype(np.float64) for own in x]
    for i, r in enumerate(counts):
        rows = [merged(own, r) for own in rows]
        expected[f"merged_{i}"] = floats(rows)
    return {"x": x}, {"function": "merge", "r_list": counts}, expected


def walked(logits: np.ndarray, tau: float, steps: int) -> np.ndarray:
    """(L,) of (H, L, L) float64."""
    m = softmax(np.where(logits > HIDDEN / 2, logits / tau, HIDDEN))
    mass = np.full((len(logits), 1, logits.shape[-1]), 1 / logits.shape[-1])
    for _ in range(steps):
        mass = mass @ m
    return np.sqrt((mass[:, 0] ** 2).mean(axis=0))


def importance(batch: int, length: int, tau: float, steps: int) -> Case:
    z = normal(batch, 3, length, length, seed=length)
    z = np.where(np.tri(length, dtype=bool), z, np.float32(HIDDEN))
    expected = {"importance": floats([walked(own.astype(np.float64), tau, steps) for own in z])}
    return {"logits": z}, {"function": "importance", "tau": tau, "iterations": steps, "damping": 0.0}, expected


def cases() -> dict[str, Case]:
    return {
        "merge_odd": merge(2, 31, [9, 11, 2]),
        "merge_more_than_half": merge(1, 20, [50, 50, 50]),
        "one_step": importance(2, 21, 0.1, 1),
        "many_steps": importance(1, 30, 0.5, 9),
    }
