"""HiPrune: another border, more anchors than fit, towers with other prefix rows and depths, patches that do not merge."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, floats, normal


def chosen(
    objects: np.ndarray, deep: np.ndarray, k: int, alpha: float, height: int, width: int, drop: bool
) -> list[int]:
    """Role of every token: 1 anchor, 2 buffer, 3 register, 0 gone."""
    n = height * width
    anchors = best(list(objects), round(k * alpha / 5))
    around = []
    for a in anchors:
        y, x = divmod(a, width)
        for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)):
            inside = 0 <= y + dy < height and 0 <= x + dx < width
            if not drop:
                around.append(min(max(a + dy * width + dx, 0), n - 1))
            elif inside:
                around.append(a + dy * width + dx)
    buffers = sorted(set(around) - set(anchors), key=lambda j: (-objects[j], j))[: k - len(anchors)]
    rest = [j for j in range(n) if j not in anchors and j not in around]
    registers = sorted(rest, key=lambda j: (-deep[j], j))[: k - len(anchors) - len(buffers)]
    return [1 if j in anchors else 2 if j in buffers else 3 if j in registers else 0 for j in range(n)]


def outputs(objects: np.ndarray, deep: np.ndarray, *args: object) -> dict[str, np.ndarray]:
    roles = np.array([chosen(u, v, *args) for u, v in zip(objects, deep)])
    return {"roles": roles, "keep_mask": roles > 0, "keep_indices": np.array([row.nonzero()[0] for row in roles])}


def scores(height: int, width: int, k: int, alpha: float, more: dict) -> Case:
    objects, deep = (np.abs(normal(2, height * width, seed=seed)) / 50 for seed in (1, 2))
    drop = more.get("border") == "drop"
    params = {"keep_per_image": k, "keep_total": 2 * k + 1, "alpha": alpha, "grid_h": height, "grid_w": width, **more}
    inputs = {"object_scores": objects, "deep_scores": deep}
    return inputs, params, outputs(objects, deep, k, alpha, height, width, drop)


def maps(height: int, width: int, prefix: int, k: int, alpha: float, blocks: dict) -> Case:
    rows = prefix + height * width
    attention = [attention_maps(2, 2, rows, rows, seed=seed) for seed in (3, 4)]
    objects, deep = (a.astype(np.float64).mean(axis=(1, 2))[:, prefix:] for a in attention)
    features = normal(2, height * width, 5, seed=5)
    found = outputs(objects, deep, k, alpha, height, width, False)
    found |= {"object_scores": floats(objects), "deep_scores": floats(deep)}
    found["features"] = np.stack([x[keep] for x, keep in zip(features, found["keep_indices"])])
    inputs = {"object_attention": attention[0], "deep_attention": attention[1], "features": features}
    return inputs, {"keep": k, "alpha": alpha, "grid_h": height, "grid_w": width, **blocks}, found


def units(height: int, width: int, unit: int, share: float, alpha: float, permuted: bool) -> Case:
    n = height * width
    attention = [attention_maps(2, n * unit, n * unit, seed=seed) for seed in (6, 7)]
    order = np.random.default_rng(8).permutation(n) if permuted else np.arange(n)
    objects, deep = (
        a.astype(np.float64).mean(axis=0).sum(axis=0).reshape(n, unit).mean(axis=1)[order] for a in attention
    )
    found = outputs(objects[None], deep[None], round(n * share), alpha, height, width, False)
    inputs = {"object_attention": attention[0], "deep_attention": attention[1]}
    inputs |= {"reverse_indices": order} if permuted else {}
    params = {"variant": "qwen2_5_vl", "keep_fraction": share, "alpha": alpha, "grid_h": height, "grid_w": width}
    expected = {"object_scores": floats(objects), "deep_scores": floats(deep), "keep_indices": found["keep_indices"][0]}
    return inputs, params | ({"merge_unit": unit} if unit > 1 else {}), expected


def cases() -> dict[str, Case]:
    return {
        "scores_border": scores(3, 7, 9, 0.8, {"border": "drop"}),
        "scores_overflow": scores(6, 5, 13, 1.0, {"num_anchors": 3}),
        "scores_no_anchor": scores(4, 4, 6, 0.1, {"num_anchors": 0}),
        "maps_without_cls": maps(4, 5, 0, 9, 0.6, {"object_layer_1based": 3, "deep_layer": -1, "num_layers": 6}),
        "maps_registers": maps(5, 3, 5, 8, 0.7, {"num_anchors": 1}),
        "units_of_nine": units(3, 4, 9, 0.5, 0.6, True),
        "patches_as_they_are": units(4, 6, 1, 0.3, 0.7, False),
    }
