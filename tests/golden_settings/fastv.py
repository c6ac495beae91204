"""FastV: all queries instead of the last, every layer of another depth, grouped keys, a budget that keeps all."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, attention_maps, best, floats, normal, softmax


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
    heads, width, size = 4, 16, 4
    length = text[0] + n + text[1]
    shapes = {
        "w_q": (heads * size, width),
        "w_k": (kv_heads * size, width),
        "w_v": (kv_heads * size, width),
        "w_o": (width, heads * size),
        "w_gate": (24, width),
        "w_up": (24, width),
        "w_down": (width, 24),
        "w_ln1": (width,),
        "w_ln2": (width,),
    }
    weights = {name: normal(depth, *shape, seed=60 + i, scale=0.4) for i, (name, shape) in enumerate(shapes.items())}
    weights["w_norm"] = normal(width, seed=70)
    embeds, follow = normal(1, length, width, seed=71), normal(1, 1, width, seed=72)
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    theta, eps = 5000.0, 1e-5

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def turned(x: np.ndarray, ids: list[int]) -> np.ndarray:
        angle = np.outer(ids, theta ** (-np.arange(0, size, 2) / size))
        cos, sin = np.cos(angle), np.sin(angle)
        low, high = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def run(
        x: np.ndarray, ids: list[int], cache: list, layer_from: int, layer_to: int
    ) -> tuple[np.ndarray, np.ndarray]:
        maps = np.zeros(0)
        for i in range(layer_from, layer_to):
            h = norm(x, w["w_ln1"][i])
            q, k, v = (
                (h @ w[name][i].T).reshape(len(h), -1, size).transpose(1, 0, 2) for name in ("w_q", "w_k", "w_v")
            )
            q, k = turned(q, ids), turned(k, ids)
            if i < len(cache):
                k, v = np.concatenate([cache[i][0], k], 1), np.concatenate([cache[i][1], v], 1)
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            k, v = (np.repeat(t, heads // kv_heads, axis=0) for t in (k, v))
            hidden = np.tri(len(h), k.shape[1], k.shape[1] - len(h), dtype=bool)
            maps = softmax(np.where(hidden, q @ k.transpose(0, 2, 1) / size**0.5, -np.inf))
            x = x + (maps @ v).transpose(1, 0, 2).reshape(len(x), -1) @ w["w_o"][i].T
            h = norm(x, w["w_ln2"][i])
            gate = h @ w["w_gate"][i].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w_up"][i].T)) @ w["w_down"][i].T
        return x, maps

    cache: list = []
    x, maps = run(embeds[0].astype(np.float64), list(range(length)), cache, 0, layer)
    stays = kept(maps, text[0], n, keep, more.get("query") == "all")
    x, _ = run(x[stays], stays, cache, layer, depth)
    y, _ = run(follow[0].astype(np.float64), [length], cache, 0, depth)
    params = {
        "function": "tiny_llama",
        "system_len": text[0],
        "image_len": n,
        "text_len": text[1],
        "keep": keep,
        "K": layer,
        "heads": heads,
        "kv_heads": kv_heads,
        "hidden": width,
        "layers": depth,
        "rope_theta": theta,
        "rms_eps": eps,
        "decode_position": length,
    }
    expected = {
        "keep_sequence": np.array(stays),
        "hidden": floats(norm(x, w["w_norm"]))[None],
        "decode_hidden": floats(norm(y, w["w_norm"]))[None],
    }
    return {"embeds": embeds, "next_embed": follow, **weights}, {**params, **more}, expected


def cases() -> dict[str, Case]:
    return {
        "select_all_queries": select((4, 6), 23, 7, 2, {"query": "all"}),
        "select_nothing_in_front": select((0, 3), 12, 12, 1, {}),
        "select_deep": select((2, 3), 12, 5, 39, {"layers": 40}),
        "llama_grouped_keys": llama((5, 4), 21, 8, 1, 3, 2, {}),
        "llama_all_queries": llama((3, 4), 16, 6, 2, 4, 1, {"query": "all"}),
    }
