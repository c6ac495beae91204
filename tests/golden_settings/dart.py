"""DART: Euclidean norms, other numbers of pivots, shares that go; and a Llama of grouped keys."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, Decoder, best, cosine, floats, normal


def visited(
    keys: np.ndarray, image: range, text: range, pivots: tuple[int, int], norm: int
) -> tuple[list[int], list[int]]:
    size = (np.abs(keys.astype(np.float64)) ** norm).sum(axis=1)
    own, others = (
        [span.start + i for i in best(list(size[span.start : span.stop]), k)] for span, k in zip((image, text), pivots)
    )
    return own, others


def kept(h: np.ndarray, image: range, own: list[int], order: list[int], share: int) -> list[int]:
    pool, found = [i for i in image if i not in own], list(own)
    for p in order:
        closest = best([-cosine(h[p], h[i]) for i in pool], share)
        chosen = [pool[i] for i in closest]
        found, pool = found + chosen, [i for i in pool if i not in chosen]
    return sorted(found)


def select(before: int, n: int, behind: int, pivots: tuple[int, int], limit: int | None, more: dict) -> Case:
    length = before + n + behind
    keys, h = normal(1, 3, length, 5, seed=length), normal(1, length, 11, seed=length + 1)
    image, text = range(before, before + n), range(before + n, length)
    flat = keys[0].transpose(1, 0, 2).reshape(length, -1)
    own, others = visited(flat, image, text, pivots, 2 if more.get("norm") == "l2" else 1)
    total = limit if limit is not None else int(n * (1 - more["reduction_ratio"]))
    share = total // sum(pivots)
    order = list(set(own + others))
    expected = {
        "kept": np.array(kept(h[0], image, own, order, share)),
        "image_pivots": np.array(own),
        "text_pivots": np.array(others),
        "pivot_order": np.array(order),
        "kept_descending_order": np.array(kept(h[0], image, own, own + others, share)),
    }
    params = {
        "function": "select",
        "image_start": before,
        "image_len": n,
        "text_len": behind,
        "pivot_image": pivots[0],
        "pivot_text": pivots[1],
        "max_tokens": limit,
        "per_pivot": share,
        **more,
    }
    return {"keys": keys, "hidden_norm": h}, params, expected


def llama(before: int, n: int, behind: int, cut: int, kv_heads: int, limit: int) -> Case:
    model, pivots = Decoder(4, kv_heads, 4, 16, seed=80), (2, 3)
    length = before + n + behind
    image, text = range(before, before + n), range(before + n, length)
    embeds, follow = normal(1, length, 16, seed=81), normal(1, 1, 16, seed=82)
    state = model.start()
    x = model.run(state, embeds[0], range(length), 0, cut)
    own, others = visited(state.keys[cut - 1].transpose(1, 0, 2).reshape(length, -1), image, text, pivots, 1)
    order = list(set(own + others))
    found = kept(model.norm(x), image, own, order, limit // sum(pivots))
    stays = [*range(before), *found, *text]
    x = model.run(state, x[stays], stays, cut, model.depth)
    held = state.held()
    y = model.run(state, follow[0], [length], 0, model.depth)
    expected = {
        "keep_sequence": np.array(stays),
        "pivot_order": np.array(order),
        "kept": np.array(found),
        "hidden": floats(model.norm(x))[None],
        "cache_len": np.array(held),
        "decode_hidden": floats(model.norm(y))[None],
        "decode_position": np.array([length] * model.depth),
    }
    params = {
        "function": "tiny_llama",
        "image_start": before,
        "image_len": n,
        "text_len": behind,
        "K": cut,
        "pivot_image": pivots[0],
        "pivot_text": pivots[1],
        "max_tokens": limit,
        **model.params,
    }
    return {"embeds": embeds, "next_embed": follow, **model.weights}, params, expected


def cases() -> dict[str, Case]:
    return {
        "select_euclidean": select(4, 40, 8, (4, 4), 16, {"norm": "l2", "reduction_ratio": 0.5}),
        "select_other_pivots": select(2, 50, 9, (6, 2), None, {"reduction_ratio": 0.5}),
        "select_image_first": select(0, 33, 5, (1, 5), 20, {"reduction_ratio": 0.9}),
        "llama_grouped_keys": llama(6, 30, 7, 2, 2, 11),
        "llama_first_layer": llama(3, 24, 5, 1, 1, 7),
    }
