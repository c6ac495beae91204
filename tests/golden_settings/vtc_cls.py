"""VTC-CLS: other ensembles, the largest head, batches, the start of another depth, a fraction."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, floats, normal

JOINED = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}


def images(batch: int | None, depth: int, start: int, n: int, k: int, more: dict, end: int | None = None) -> Case:
    several = (batch or 1,)
    rows = attention_maps(depth, *several, 3, 1 + n, seed=depth)
    hidden, projector = normal(*several, 1 + n, 6, seed=depth + 1), normal(6, 5, seed=depth + 2)
    heads = np.max if more.get("head_reduce") == "max" else np.mean
    last = depth - 1 if end is None else end
    each = heads(rows.astype(np.float64), axis=2)[start:last, :, 1:]
    score = JOINED[more.get("ensemble", "sum")](each, axis=0)
    kept = [sorted(best(list(own), k)) for own in score]
    expected = {
        "scores": floats(score),
        "keep_indices": np.array(kept),
        "keep_mask": np.array([[i in own for i in range(n)] for own in kept]),
        "features": floats([x[1:][own].astype(np.float64) @ projector for x, own in zip(hidden, kept)]),
    }
    if batch is None:
        rows, expected = rows[:, 0], {name: value[0] for name, value in expected.items()}
    if end is not None:
        more = {**more, "end_layer_exclusive": end}
    return {"cls_rows": rows, "hidden": hidden, "projector": projector}, {"keep": k, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "largest": images(2, 6, 2, 30, 7, {"ensemble": "max", "start_layer_0based": 2}),
        "smallest": images(None, 5, 1, 24, 5, {"ensemble": "min", "start_layer_0based": 1}),
        "mean_of_largest_heads": images(
            3, 4, 0, 20, 4, {"ensemble": "mean", "head_reduce": "max", "start_layer_0based": 0}
        ),
        "start_of_another_depth": images(2, 9, 6, 18, 5, {}),
        "an_earlier_end": images(1, 8, 3, 22, 6, {"start_layer_0based": 3}, end=5),
        "fraction": images(None, 6, 2, 25, 8, {"keep": 0.32, "start_layer_0based": 2}),
    }
