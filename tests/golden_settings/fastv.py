"""FastV: all queries instead of the last, every layer of another depth, grouped keys, a budget that keeps all."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, Decoder, attention_maps, best, floats, normal


def select(text: tuple[int, int], n: int, keep: int, layer: int, more: dict) -> Case:
    length = text[0] + n + text[1]
    maps = attention_maps(2, 3, length, length, seed=length, causal=True)
    every = more.get("query") == "all"
    sequences = [kept(one.astype(np.float64), text[0], n, keep, every) for one in maps]
    seen = np.array([[i in sequence for i in range(length)] for sequence in sequences])
    params = {
        "function": "select",
        "system_len": text[0],
        "image_len": n,
        "text_len": text[1],
        "keep": keep,
        "K": layer,
    }
    expected = {"keep_sequence": np.array(sequences), "position_ids": np.array(sequences), "key_mask": seen}
    return {"attn": maps}, {**params, **more}, expected


def kept(maps: np.ndarray, start: int, n: int, keep: int, every: bool) -> list[int]:
    score = maps.mean(axis=0).mean(axis=0) if every else maps.mean(axis=0)[-1]
    image = sorted(start + i for i in best(list(score[start : start + n]), keep))
    return [*range(start), *image, *range(start + n, maps.shape[-1])]


def llama(text: tuple[int, int], n: int, keep: int, layer: int, depth: int, kv_heads: int, more: dict) -> Case:
    """A Llama written out, the prompt and one more token; rows that are gone are taken out of the sequence."""
    model, length = Decoder(4, kv_heads, depth, 16, seed=60), text[0] + n + text[1]
    embeds, follow = normal(1, length, 16, seed=71), normal(1, 1, 16, seed=72)
    state = model.start()
    x = model.run(state, embeds[0], range(length), 0, layer)
    stays = kept(state.maps[layer - 1], text[0], n, keep, more.get("query") == "all")
    x = model.run(state, x[stays], stays, layer, depth)
    y = model.run(state, follow[0], [length], 0, depth)
    params = {
        "function": "tiny_llama",
        "system_len": text[0],
        "image_len": n,
        "text_len": text[1],
        "keep": keep,
        "K": layer,
        "decode_position": length,
        **model.params,
    }
    expected = {
        "keep_sequence": np.array(stays),
        "hidden": floats(model.norm(x))[None],
        "decode_hidden": floats(model.norm(y))[None],
    }
    return {"embeds": embeds, "next_embed": follow, **model.weights}, {**params, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "select_all_queries": select((4, 6), 23, 7, 2, {"query": "all"}),
        "select_nothing_in_front": select((0, 3), 12, 12, 1, {}),
        "select_deep": select((2, 3), 12, 5, 39, {"layers": 40}),
        "llama_grouped_keys": llama((5, 4), 21, 8, 1, 3, 2, {}),
        "llama_all_queries": llama((3, 4), 16, 6, 2, 4, 1, {"query": "all"}),
    }
