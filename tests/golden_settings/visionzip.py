"""VisionZip: joint means instead of sums, no contextual rows, fewer tokens left than targets, a [CLS] alone, batches of units."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, floats, normal


def grouped(keys: np.ndarray, rest: list[int], k: int) -> tuple[list[int], dict[int, int]]:
    """Targets, and the number of the target that every other token of ``rest`` joins."""
    step = max(1, len(rest) // k) if k else 1
    target = rest[::step][:k]
    joined = (
        {i: max(range(len(target)), key=lambda j: (cosine(keys[i], keys[target[j]]), -j)) for i in rest}
        if target
        else {}
    )
    return target, {i: j for i, j in joined.items() if i not in target}


def made(x: np.ndarray, target: list[int], joined: dict[int, int], merge: str) -> list[np.ndarray]:
    rows = []
    for j, t in enumerate(target):
        own = x[t].astype(np.float64)
        others = [x[i].astype(np.float64) for i, to in joined.items() if to == j]
        if merge == "mean":
            rows.append(np.mean([own, *others], axis=0))
        else:
            rows.append(own + (np.mean(others, axis=0) if others else 0))
    return rows


def images(batch: int, n: int, dominant: int, contextual: int, more: dict) -> Case:
    rows, hidden = attention_maps(batch, 3, 1 + n, seed=n), normal(batch, 1 + n, 7, seed=n + 1)
    metric = normal(batch, 1 + n, 5, seed=n + 2)
    found: dict[str, list] = {name: [] for name in ("dominant_indices", "target_indices", "assignment", "tokens")}
    for a, x, k in zip(rows, hidden, metric):
        score = a.astype(np.float64).sum(axis=0)
        kept = [0, *sorted(1 + i for i in best(list(score[1:]), dominant - 1))]
        target, joined = grouped(k, [i for i in range(1 + n) if i not in kept], contextual)
        to = joined | {t: j for j, t in enumerate(target)}
        found["dominant_indices"].append(kept)
        found["target_indices"].append(target)
        found["assignment"].append([to.get(i, -1) for i in range(1 + n)])
        found["tokens"].append([*x[kept], *made(x, target, joined, more.get("merge", "add_mean"))])
    expected = {name: floats(v) if name == "tokens" else np.array(v, dtype=np.int64) for name, v in found.items()}
    params = {"dominant_incl_cls": dominant, "contextual": contextual, "has_cls": True, **more}
    return {"cls_rows": rows, "hidden": hidden, "metric": metric}, params, expected


def units(n: int, patches: int, dominant: int, contextual: int, more: dict) -> Case:
    maps, keys = attention_maps(2, n * patches, n * patches, seed=n), normal(2, n * patches, 6, seed=n + 1)
    embeds, back = normal(n, 9, seed=n + 2), np.random.default_rng(n).permutation(n)
    score = maps.astype(np.float64).mean(axis=0).sum(axis=0).reshape(n, patches).mean(axis=1)[back]
    metric = keys.astype(np.float64).reshape(2, n, patches, 6).mean(axis=(0, 2))[back]
    kept = sorted(best(list(score), dominant))
    target, joined = grouped(metric, [i for i in range(n) if i not in kept], contextual)
    rows = {
        **{i: embeds[i] for i in kept},
        **dict(zip(target, made(embeds, target, joined, more.get("merge", "add_mean")))),
    }
    expected = {
        "scores": floats(score),
        "dominant_indices": np.array(kept),
        "target_indices": np.array(target),
        "positions": np.array(sorted(rows)),
        "tokens": floats([rows[i] for i in sorted(rows)]),
    }
    params = {"dominant": dominant, "contextual": contextual, "has_cls": False, **more}
    return {"attention": maps, "keys": keys, "reverse_indices": back, "embeds": embeds}, params, expected


def cases() -> dict[str, Case]:
    return {
        "joint_means": images(2, 50, 9, 4, {"merge": "mean"}),
        "no_contextual": images(1, 30, 12, 0, {}),
        "fewer_left_than_targets": images(2, 20, 17, 8, {}),
        "cls_alone": images(1, 40, 1, 6, {}),
        "units_joint_means": units(24, 4, 5, 4, {"merge": "mean"}),
        "units_of_nine": units(14, 9, 3, 2, {"variant": "merged 2x2 units"}),
    }
