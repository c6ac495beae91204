"""PyramidDrop: one boundary and four, grouped keys, original ids, a batch that decodes, nothing left."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden_settings.plain import Case, Decoder, best, floats, normal, softmax


def sample(
    model: Decoder, x: np.ndarray, follow: np.ndarray, start: int, n: int, cuts: dict[int, float], compact: bool
) -> Any:
    """Columns after each cut, hidden states, what each layer holds, the id of the next token there, and its state."""
    length, state = len(x), model.start()
    columns, ids, left = list(range(length)), list(range(length)), n
    stays, next_ids, layer = [], [length] * model.depth, 0
    for cut, ratio in cuts.items():
        x = model.run(state, x, ids, layer, cut)
        q, k, _ = model.projected(x, ids, cut)
        row = softmax(q[:, -1:] @ k.transpose(0, 2, 1) / model.size**0.5).mean(axis=0)[0]
        keep = sorted(start + i for i in best(list(row[start : start + left]), int(n * ratio)))
        rows = [*range(start), *keep, *range(start + left, len(x))]
        left, layer = len(keep), cut
        x, columns, ids = x[rows], [columns[r] for r in rows], [ids[r] for r in rows]
        if compact:
            ids = list(range(len(rows)))
            next_ids[cut:] = [len(rows)] * (model.depth - cut)
        stays.append(columns)
    x = model.run(state, x, ids, layer, model.depth)
    held, y = state.held(), follow
    for i in range(model.depth):
        y = model.run(state, y, [next_ids[i]], i, i + 1)
    return stays, model.norm(x), held, next_ids, model.norm(y)


def llama(
    starts: list[int], n: int, behind: int, cuts: dict[int, float], kv_heads: int, compact: bool, depth: int
) -> Case:
    model, batch = Decoder(4, kv_heads, depth, 16, seed=90), len(starts)
    length = max(starts) + n + behind
    embeds, follow = normal(batch, length, 16, seed=91), normal(batch, 1, 16, seed=92)
    found = [sample(model, x, y, start, n, cuts, compact) for x, y, start in zip(embeds, follow, starts)]
    expected = {f"keep_sequence_stage{s}": np.array([f[0][s] for f in found]) for s in range(len(cuts))}
    expected |= {
        "hidden": floats([f[1] for f in found]),
        "cache_len": np.array(found[0][2]),
        "decode_position": np.array(found[0][3]),
        "decode_hidden": floats([f[4] for f in found]),
    }
    params = {
        "function": "tiny_llama",
        "image_start": starts,
        "image_len": n,
        "layer_list": list(cuts),
        "ratio_list": list(cuts.values()),
        "position_policy": "compact" if compact else "original",
        **model.params,
    }
    return {"embeds": embeds, "next_embed": follow, **model.weights}, params, expected


def cases() -> dict[str, Case]:
    return {
        "one_boundary": llama([4], 30, 6, {2: 0.4}, 2, True, 4),
        "four_boundaries": llama([2], 40, 5, {1: 0.8, 2: 0.55, 4: 0.3, 5: 0.1}, 4, True, 7),
        "original_ids": llama([3], 25, 4, {1: 0.6, 3: 0.2}, 1, False, 5),
        "batch_decodes": llama([0, 7], 20, 5, {1: 0.5, 2: 0.25}, 2, True, 4),
        "nothing_left": llama([5], 16, 4, {1: 0.5, 2: 0.0}, 2, True, 4),
    }
