"""PruneSID: given loadings in a batch, other counts, many suppressed, sixteen tokens of a merger, raster order."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, normal


def loadings(x: np.ndarray, q: int) -> np.ndarray:
    squashed = 1 / (1 + np.exp(-x.astype(np.float64)))
    return np.linalg.svd(squashed - squashed.mean(axis=1, keepdims=True), full_matrices=False)[0][:, :q]


def chosen(
    x: np.ndarray, wanted: int, loading: np.ndarray, score: np.ndarray | None
) -> tuple[list[int], list[int], list[int]]:
    """The tokens in the order of their groups, the group of each, and what suppression leaves of every group.

    ``score``: of a CLIP tower, whose [CLS] row is one of the ``wanted``; None: of a merger, by the loadings.
    """
    n, q = loading.shape
    group = [best(list(np.abs(row)), 1)[0] for row in loading]
    s = np.array([[cosine(a, b) for b in x] for a in x])
    if score is None:
        value = [abs(loading[i, g]) for i, g in enumerate(group)]
        theta = max(18 * wanted / n, 1) * np.triu(s).sum() / n**2
    else:
        value = list(score)
        theta = wanted / 32 * s[np.triu_indices(n, 1)].mean()
    ranks, left = [], []
    for g in range(q):
        members = [i for i in range(n) if group[i] == g]
        active, picks = [i for i in members if value[i] > 0], []
        while active:
            i = min(active, key=lambda j: (-value[j], j))
            picks.append(i)
            active = [j for j in active if j != i and s[i, j] <= theta]
        ranks.append(picks + sorted((i for i in members if i not in picks), key=lambda j: (-value[j], j)))
        left.append(len(picks))
    low = [min(1, len(r)) for r in ranks]
    up = [min(5 * math.ceil(wanted / 64), len(r), k) for r, k in zip(ranks, left)]
    while sum(up) < min(wanted, n):
        up = [min(u + 1, len(r)) for u, r in zip(up, ranks)]
    rest = max(0, wanted - sum(low) - (score is not None))
    ends = [round(float(np.float32(rest * sum(left[: g + 1]) / sum(left)))) for g in range(q)]
    take = [min(lo + d, u) for lo, d, u in zip(low, np.diff([0, *ends]), up)]
    for g in sorted(range(q), key=lambda g: (-left[g], g)):
        take[g] = min(up[g], take[g] + max(0, rest + sum(low) - sum(take)))
    return [i for own, t in zip(ranks, take) for i in own[:t]], group, left


def clip(batch: int, n: int, wanted: int, given: bool, spread: float) -> Case:
    x = normal(batch, 1, 30, seed=n) + normal(batch, 1 + n, 30, seed=n + 1, scale=spread)
    a = attention_maps(batch, 3, n, seed=n + 2)
    q = wanted // 4
    own = normal(n, q, seed=n + 3) if given else None
    found = [
        chosen(b[1:], wanted, loadings(b[1:], q) if own is None else own, c.astype(np.float64).sum(axis=0))
        for b, c in zip(x, a)
    ]
    orders = np.array([[0, *(1 + i for i in order)] for order, _, _ in found])
    expected = {
        "order": orders,
        "tokens": np.stack([b[order] for b, order in zip(x, orders)]),
        "groups": np.array([group for _, group, _ in found]),
        "nms_counts": np.array([left for _, _, left in found]),
    }
    inputs = {"hidden": x, "attn": a} | ({} if own is None else {"loadings": own})
    return inputs, {"function": "clip", "keep": wanted}, expected


def qwen(n: int, per_576: int, given: bool) -> Case:
    x = normal(1, 40, seed=n) + normal(n, 40, seed=n + 1)
    wanted = max(round(n * per_576 / 576), 16)
    params = {"function": "qwen", "per_576": per_576}
    if n <= 16:
        return {"tokens": x}, params, {"order": np.arange(n)}
    q = max(wanted // 4, 4)
    own = normal(n, q, seed=n + 2) if given else None
    order, group, _ = chosen(x, wanted, loadings(x, q) if own is None else own, None)
    order = order[:wanted]
    expected = {"order": np.array(sorted(order) if len(order) > 150 else order), "groups": np.array(group)}
    return {"tokens": x} | ({} if own is None else {"loadings": own}), params, expected


def cases() -> dict[str, Case]:
    return {
        "clip_given_in_a_batch": clip(2, 70, 22, True, 1.0),
        "clip_few": clip(1, 50, 9, False, 1.0),
        "clip_alike": clip(2, 60, 30, False, 0.4),
        "qwen_given": qwen(90, 200, True),
        "qwen_alone": qwen(75, 130, False),
        "qwen_sixteen": qwen(16, 64, False),
        "qwen_raster": qwen(230, 400, True),
    }
