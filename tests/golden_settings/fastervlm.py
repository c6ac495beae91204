"""FasterVLM: another block, the largest head, a tower without a [CLS], a row of tiles, a fraction."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, floats, normal


def picked(score: np.ndarray, features: np.ndarray, k: int) -> dict[str, np.ndarray]:
    keep = np.array([sorted(best(list(row), k)) for row in score])
    return {
        "keep_indices": keep,
        "keep_mask": np.array([[i in row for i in range(score.shape[1])] for row in keep]),
        "scores": floats(score),
        "features": np.stack([x[row] for x, row in zip(features, keep)]),
    }


def images(shape: tuple[int, ...], n: int, k: int, more: dict) -> Case:
    """[CLS] rows (..., H, 1 + N), their [CLS] key cut off."""
    rows = attention_maps(*shape, 3, 1 + n, seed=n)[..., 1:]
    features = normal(*shape, n, 4, seed=n + 1)
    heads = np.max if more.get("head_reduce") == "max" else np.mean
    score = heads(rows.astype(np.float64), axis=-2)
    expected = picked(score.reshape(-1, n), features.reshape(-1, n, 4), k)
    expected = {name: value.reshape(*shape, *value.shape[1:]) for name, value in expected.items()}
    return {"cls_attn": rows, "features": features}, more, expected


def tiles(width: int, height: int, side: int, total: int) -> Case:
    count, n = 1 + width * height, side * side
    rows, features = attention_maps(count, 2, 1 + n, seed=5)[..., 1:], normal(count, n, 4, seed=6)
    score = rows.astype(np.float64).mean(axis=1)
    kept = [set(best(list(row), total // count)) for row in score]
    order = [i for i in range(n) if i in kept[0]]
    for y in range(height * side):
        for x in range(width * side):
            tile, at = 1 + y // side * width + x // side, y % side * side + x % side
            order += [tile * n + at] if at in kept[tile] else []
    params = {"keep_total": total, "grid_w": width, "grid_h": height}
    expected = {"source_indices": np.array(order), "features": features.reshape(-1, 4)[order]}
    return {"cls_attn": rows, "features": features}, params, expected


def tower(depth: int, layer: int, n: int, k: int, more: dict) -> Case:
    prefix = int(more.get("class_token", True))
    maps = attention_maps(depth, 2, 3, prefix + n, prefix + n, seed=7)
    hidden = normal(depth + 1, 2, prefix + n, 6, seed=8)
    own = maps[layer].astype(np.float64)  # of a layer counted from the end: the block that made hidden_states[layer]
    if more.get("score") == "global_mean":
        score = own.mean(axis=(1, 2))
    else:
        score = (np.max if more.get("head_reduce") == "max" else np.mean)(own[:, :, 0], axis=1)
    expected = picked(score[:, prefix:], hidden[layer][:, prefix:], k)
    return {"attentions": maps, "hidden_states": hidden}, {"keep": k, "select_layer": layer, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "images_largest_head": images((2,), 30, 7, {"keep": 7, "head_reduce": "max", "select_layer": -1}),
        "images_fraction": images((3,), 21, 8, {"keep": 0.37}),
        "frames": images((2, 3), 16, 5, {"keep_per_frame": 5, "video": True}),
        "tiles_in_a_row": tiles(3, 1, 4, 22),
        "tower_last_block": tower(3, -1, 16, 5, {}),
        "tower_largest_head": tower(5, -3, 20, 6, {"head_reduce": "max"}),
        "tower_all_queries": tower(4, -2, 16, 4, {"score": "global_mean"}),
        "tower_without_cls": tower(4, -2, 16, 4, {"score": "global_mean", "class_token": False}),
    }
