"""SparseVLM: other texts and clusters, rank rules, nothing recycled, one pruning layer, ids and heads of the second version."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import Case, Decoder, attention_maps, best, floats, normal, softmax


def raters(visual: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, list[int]]:
    m = softmax(visual.astype(np.float64) @ text.astype(np.float64).T).mean(axis=0)
    return m, [i for i, v in enumerate(m) if v > m.mean()]


def rate(n: int, words: int) -> Case:
    visual, text = normal(1, n, 12, seed=n), normal(1, words, 12, seed=n + 1)
    m, chosen = raters(visual[0], text[0])
    return (
        {"visual": visual, "text": text},
        {"function": "select_raters"},
        {"text_score": floats(m), "raters": np.array(chosen)},
    )


def clusters(x: np.ndarray, count: int) -> list[np.ndarray]:
    """Means by density peaks, in falling score of their centres."""
    x, q = x.astype(np.float64), len(x)
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / np.sqrt(x.shape[1])
    rho = [float(np.exp(-np.mean(sorted(row**2)[:count]))) for row in d]
    delta = []
    for i in range(q):
        above = [d[i, j] for j in range(q) if rho[j] > rho[i]]
        delta.append(min(above) if above else d.max())
    centre = best([r * e for r, e in zip(rho, delta)], count)
    to = [centre.index(i) if i in centre else best([-d[i, c] for c in centre], 1)[0] for i in range(q)]
    return [x[[i for i in range(q) if to[i] == j]].mean(axis=0) for j in range(count)]


def recycle(q: int, count: int) -> Case:
    x = normal(1, q, 7, seed=q)
    return {"x": x}, {"function": "cluster_and_merge", "clusters": count}, {"merged": floats([clusters(x[0], count)])}


def score(before: int, n: int, behind: int, chosen: list[int], more: dict) -> Case:
    length = before + n + behind
    maps = attention_maps(1, 3, length, length, seed=length, causal=True)
    seen = maps[0].astype(np.float64).mean(axis=0)[[before + n + i for i in chosen], before : before + n]
    e = list(seen.mean(axis=0))
    expected = {"relevance": floats(e)}
    if "keep" in more:
        expected["keep_topk"] = np.array(sorted(best(e, min(more["keep"], n - 1))))
    if "rank_scale" in more:
        rank = int(np.linalg.matrix_rank(seen.astype(np.float32)))
        k = n if rank == n else min(int(rank * more["rank_scale"] + more.get("rank_bias", 0)), n - 1)
        expected |= {"rank": np.array(rank), "keep_rank_rule": np.array(sorted(best(e, k)))}
    params = {"function": "score_and_select", "system_len": before, "image_len": n, "text_len": behind, **more}
    return {"attn": maps, "raters": np.array(chosen)}, params, expected


def llama(text: tuple[int, int], n: int, counts: dict[int, int], more: dict, heads: int = 4, kv_heads: int = 2) -> Case:
    model = Decoder(heads, kv_heads, max(counts) + 2, 4 * heads, seed=40)
    first, length, start = str(more.get("version", "1")).startswith("1"), text[0] + n + text[1], text[0]
    embeds, follow = normal(1, length, model.width, seed=41, scale=0.5), normal(1, 1, model.width, seed=42)
    chosen = raters(embeds[0, start : start + n], embeds[0, start + n :])[1]
    state, x, ids, left, layer = model.start(), embeds[0].astype(np.float64), list(range(length)), n, 0
    next_ids = [length] * model.depth
    for cut, count in counts.items():
        x = model.run(state, x, ids, layer, cut + 1)
        layer, words = cut + 1, [start + left + i for i in chosen]
        a = state.maps[cut]
        if not first:
            theta = model.theta ** (-np.arange(0, model.size, 2) / model.size)
            far = np.subtract.outer(ids, ids)[..., None] * theta
            a = a / (2 / model.size**0.5 * np.cos(far).sum(axis=-1))
            a = a[best(list(a[:, words, start : start + left].sum(axis=(1, 2))), more["selected_heads"])]
        e = list(a.mean(axis=0)[words, start : start + left].mean(axis=0))
        k = min(count, left - 1)
        order = best(e, left)
        kept = sorted(order[:k])
        rows = [*range(start), *(start + i for i in kept)]
        added = []
        if first and more.get("recycle", True):
            again = order[k : k + int(0.3 * (left - k)) + 1]
            added = clusters(x[[start + i for i in sorted(again)]], len(again) // 10 + 1)
        tail = list(range(start + left, len(x)))
        x = np.array([*x[rows], *added, *x[tail]])
        ids = list(range(len(x))) if first else [ids[r] for r in rows + tail]
        left = k + len(added)
        if first:
            next_ids[layer:] = [len(x)] * (model.depth - layer)
    x = model.run(state, x, ids, layer, model.depth)
    held, y = state.held(), follow[0]
    for i in range(model.depth):
        y = model.run(state, y, [next_ids[i]], i, i + 1)
    expected = {
        "hidden": floats(model.norm(x))[None],
        "cache_len": np.array(held),
        "decode_position": np.array(next_ids),
        "decode_hidden": floats(model.norm(y))[None],
    }
    params = {
        "function": "tiny_llama",
        "system_len": start,
        "image_len": n,
        "text_len": text[1],
        "pruning_layers": list(counts),
        "keep_list": list(counts.values()),
        **more,
        **model.params,
    }
    return {"embeds": embeds, "next_embed": follow, **model.weights}, params, expected


def cases() -> dict[str, Case]:
    return {
        "raters_many_words": rate(17, 40),
        "raters_two_words": rate(50, 2),
        "recycle_five": recycle(41, 5),
        "recycle_one": recycle(9, 1),
        "score_without_a_number": score(3, 20, 9, [0, 4, 8], {"rank_scale": 3.0}),
        "score_without_a_rank": score(6, 33, 7, [2, 3], {"keep": 50}),
        "score_full_rank": score(2, 5, 12, list(range(12)), {"keep": 3, "rank_scale": 1.0, "rank_bias": 2.0}),
        "llama_one_layer": llama((4, 8), 40, {1: 15}, {"version": "1"}),
        "llama_nothing_recycled": llama((3, 9), 36, {0: 20, 2: 8}, {"version": "1_0", "recycle": False}),
        "llama_many_recycled": llama((2, 7), 90, {1: 12, 3: 3}, {}, kv_heads=4),
        "llama_second_two_heads": llama((5, 6), 24, {1: 14, 2: 6}, {"version": "2_0", "selected_heads": 2}),
    }
