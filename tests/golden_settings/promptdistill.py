"""PromptDistill: three stages, batches, caches that follow one of them, one that keeps all."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden_settings.plain import Case, Decoder, best, floats, normal


def sample(model: Decoder, x: np.ndarray, layers: list[int], counts: list[int], pool: int, truncate: int) -> Any:
    """Logits of each stage, columns kept at last, hidden states, and what each layer holds."""
    length, state = len(x), model.start()
    columns, first, heard, chosen = list(range(length)), 0, [], []
    for z, count in zip(layers, counts):
        x = model.run(state, x, columns, first, z + 1)
        if z == model.depth - 1:
            first = model.depth
            break
        w = state.logits[z].mean(axis=0)[-1]
        heard.append(w)
        own = [*list(w[:-1]), 0.0]
        if pool:
            wide = [0.0, 0.0, *own, 0.0, 0.0]
            own = [sum(wide[i : i + 5]) / 5 for i in range(len(own))]
        rows = [*sorted(best(own[:-1], min(count, len(own) - 1))), len(own) - 1]
        chosen.append((z, rows))
        x, columns, first = x[rows], [columns[r] for r in rows], z + 1
    x = model.run(state, x, columns, first, model.depth)
    follow = len(chosen) if truncate < 0 else min(truncate, len(chosen))
    for stage in range(follow):
        last = list(range(len(chosen[stage][1])))
        rows = chosen[stage][1]
        for _, later in chosen[stage + 1 : follow]:
            last = [last[r] for r in later]
        rows = [rows[r] for r in last]
        for layer in range(chosen[stage - 1][0] + 1 if stage else 0, chosen[stage][0] + 1):
            state.trim(layer, rows)
    return heard, columns, model.norm(x), state


def llama(
    batch: int, length: int, layers: list[int], counts: list[int], pool: int, truncate: int, decodes: bool
) -> Case:
    model = Decoder(4, 2, 6, 16, seed=30)
    embeds, follow = normal(batch, length, 16, seed=31), normal(batch, 1, 16, seed=32)
    found = [sample(model, x, layers, counts, pool, truncate) for x in embeds]
    held = found[0][3].held()
    expected = {f"selection_logits_stage{s}": floats([f[0][s] for f in found]) for s in range(len(found[0][0]))}
    expected |= {
        "kept_final": np.array([f[1] for f in found]),
        "hidden": floats([f[2] for f in found]),
        "cache_len": np.array(held),
    }
    inputs = {"embeds": embeds, "prompt_end": np.array([length - 1] * batch), **model.weights}
    if decodes:
        inputs["next_embed"] = follow
        y = [model.norm(model.run(f[3], x, [length], 0, model.depth)) for f, x in zip(found, follow)]
        expected |= {"decode_hidden": floats(y), "decode_position": np.array([length] * model.depth)}
    params = {
        "function": "tiny_llama",
        "selection_layers": layers,
        "top_k": counts,
        "pooling": pool,
        "cache_truncation": truncate,
        **model.params,
    }
    return inputs, params, expected


def cases() -> dict[str, Case]:
    return {
        "three_stages": llama(1, 50, [0, 2, 4], [30, 17, 6], 5, 0, True),
        "first_of_two_truncates": llama(2, 40, [1, 3], [20, 9], 5, 1, True),
        "all_truncate": llama(2, 36, [0, 1, 3], [25, 14, 5], 0, -1, True),
        "last_layer_is_ignored": llama(1, 30, [2, 5], [12, 3], 5, -1, False),
        "more_than_there_are": llama(1, 24, [1, 2], [100, 7], 0, 0, False),
    }
