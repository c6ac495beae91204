"""MustDrop: without a [CLS], grids that are no squares, ragged batches, other depths, ids and caches left alone."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, floats, means, normal, summed


def alike(x: np.ndarray, height: int, width: int, w: int) -> tuple[list[list[int]], list[float]]:
    """Tokens of every window in raster order, and their mean cosine."""
    windows = [
        [(w * i + a) * width + w * j + b for a in range(w) for b in range(w)]
        for i in range(height // w)
        for j in range(width // w)
    ]
    pairs = w * w * (w * w - 1)
    return windows, [sum(cosine(x[i], x[j]) for i in one for j in one if i != j) / pairs for one in windows]


def merged(x: np.ndarray, prefix: int, height: int, width: int, w: int, r: int) -> list[int]:
    """Row of every token: prefix rows, the ``r`` windows most alike, the other patches."""
    windows, similarity = alike(x[prefix:], height, width, w)
    assign, rows = [*range(prefix), *[-1] * (height * width)], prefix
    for one in best(similarity, r):
        for i in windows[one]:
            assign[prefix + i] = rows
        rows += 1
    for i, row in enumerate(assign):
        if row < 0:
            assign[i], rows = rows, rows + 1
    return assign


def scenes(batch: int, rows: int, height: int, width: int, seed: int) -> np.ndarray:
    """Left halves nearly of one colour."""
    x = normal(batch, rows, 6, seed=seed)
    flat = [i for i in range(rows - height * width, rows) if (i - rows + height * width) % width < width // 2]
    x[:, flat] = 1 + 0.2 * x[:, flat]
    return x


def spatial(height: int, width: int, w: int, more: dict) -> Case:
    prefix = int(more.get("cls_token", True))
    x = scenes(2, prefix + height * width, height, width, seed=21)
    similarity = [alike(one[prefix:], height, width, w)[1] for one in x]
    r = min(sum(s >= 0.8 for s in one) for one in similarity)
    assert r > 0
    assigns = [merged(one, prefix, height, width, w, r) for one in x]
    expected = {
        "merged": floats([means(one, assign, np.ones(len(one))) for one, assign in zip(x, assigns)]),
        "size": floats([summed(np.ones(len(assign)), assign) for assign in assigns])[..., None],
        "assign": np.array(assigns),
        "num_merged_windows": np.array(r),
        "window_similarity": floats(similarity),
    }
    params = {
        "function": "spatial_merge",
        "window": [w, w],
        "threshold": 0.8,
        "grid_h": height,
        "grid_w": width,
        **more,
    }
    return {"x": x}, params, expected


def encoder(side: int, w: int, depth: int, rate: float, layer: int) -> Case:
    x = scenes(1, 1 + side * side, side, side, seed=22)
    r = sum(s >= 0.8 for s in alike(x[0, 1:], side, side, w)[1])
    assign = merged(x[0], 1, side, side, w, r)
    rows = max(assign) + 1
    features, maps = normal(1, rows, 6, seed=23), attention_maps(1, 2, rows, seed=24)
    score = maps.astype(np.float64)[0].mean(axis=0)[1:]
    keys = best(list(score), math.ceil(rate * (rows - 1)))
    params = {
        "function": "encoder_stage",
        "window": [w, w],
        "threshold": 0.8,
        "merge_after_block": 0,
        "key_block": depth - 1,
        "key_rate": rate,
        "select_layer": layer,
    }
    expected = {
        "merged_after_block0": floats(means(x[0], assign, np.ones(len(assign))))[None],
        "key_set": np.array([keys]),
        "key_set_sorted": np.array([sorted(keys)]),
        "projector_input": features[:, 1:],
    }
    return {"hidden_after_block0": x, "cls_attn_last_block": maps, "features": features}, params, expected


def attended(maps: np.ndarray, system: int, n: int, theta_g: float, theta_i: float) -> list[int]:
    rows = maps.astype(np.float64)[0].mean(axis=0)[system + n :, system : system + n]
    total = rows.sum(axis=0)
    return [j for j in range(n) if total[j] >= theta_g * total.sum() or rows[:, j].max() >= theta_i]


def one_filter(system: int, n: int, text: int, keys: list[int]) -> Case:
    length = system + n + text
    maps = attention_maps(1, 3, length, length, seed=n, causal=True)
    important = attended(maps, system, n, 0.03, 0.05)
    keep = sorted({*important, *keys})
    params = {"function": "dual_attention_filter", "system_len": system, "image_len": n, "text_len": text}
    expected = {
        "important": np.array(important),
        "keep": np.array(keep),
        "new_key_set": np.array([keep.index(j) for j in keys], dtype=np.int64),
        "keep_sequence": np.array([*range(system), *(system + j for j in keep), *range(system + n, length)]),
    }
    inputs = {"attn": maps, "key_set": np.array(keys, dtype=np.int64)}
    return inputs, {**params, "global_thr": 0.03, "individual_thr": 0.05}, expected


def prefill(layers: list[int], depth: int, more: dict) -> Case:
    system, n, text, keys = 3, 20, 5, [2, 11]
    length = system + n + text
    left, inputs = list(range(n)), {"key_set": np.array(keys)}
    entering = [[*range(length)]]
    for stage, layer in enumerate(layers):
        entering += [entering[-1]] * (layer + 1 - len(entering))
        rows = len(entering[-1])
        maps = inputs[f"attn_stage{stage}"] = attention_maps(1, 2, rows, rows, seed=30 + stage, causal=True)
        important = attended(maps, system, len(left), 0.04, 0.06)
        left = [j for place, j in enumerate(left) if place in important or j in keys]
        entering.append([*range(system), *(system + j for j in left), *range(system + n, length)])
    entering += [entering[-1]] * (depth - len(entering))
    trimmed = more.get("cache_policy") != "full"
    cached = [entering[-1] if trimmed and layer >= layers[0] else row for layer, row in enumerate(entering)]
    compact = more.get("position_policy") == "compact"

    def rows_of(values: list[list[int]]) -> np.ndarray:
        return np.array([row + [-1] * (length - len(row)) for row in values])

    params = {
        "function": "prefill_plan",
        "system_len": system,
        "image_len": n,
        "text_len": text,
        "global_thr": 0.04,
        "individual_thr": 0.06,
        "pruning_layers": layers,
        "num_layers": depth,
        **more,
    }
    expected = {
        "token_ids": rows_of(entering),
        "position_ids": rows_of([list(range(len(row))) if compact else row for row in entering]),
        "cache_ids": rows_of(cached),
        "final_ids": np.array(entering[-1]),
        "decode_position": np.array([len(row) if compact else length for row in cached]),
    }
    return inputs, params, expected


def cases() -> dict[str, Case]:
    return {
        "merge_without_cls": spatial(6, 6, 3, {"cls_token": False}),
        "merge_no_square": spatial(4, 8, 2, {}),
        "encoder_of_six_blocks": encoder(6, 2, 6, 0.15, -2),
        "encoder_last_block": encoder(4, 2, 5, 0.3, -1),
        "filter_without_keys": one_filter(4, 18, 3, []),
        "filter_at_the_start": one_filter(0, 15, 1, [14]),
        "prefill_of_nine": prefill([1, 4, 5], 9, {"position_policy": "compact", "cache_policy": "full"}),
        "prefill_ids_kept": prefill([0, 6], 12, {"position_policy": "original"}),
    }
