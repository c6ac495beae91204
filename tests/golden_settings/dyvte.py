"""DyVTE: grouped keys, a picture that begins the prompt, a single token of text behind it, the last layer that can be left."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, Decoder, floats, normal

ERF = np.vectorize(math.erf)


def llama(text: tuple[int, int], n: int, depth: int, kv_heads: int, hidden: int, seed: int) -> Case:
    """A Llama written out, layer by layer; behind the first whose gate says so, the rows of the picture are taken out."""
    model, length = Decoder(4, kv_heads, depth, 16, seed=seed), text[0] + n + text[1]
    embeds = normal(1, length, 16, seed=seed + 20)
    first, second = normal(depth, hidden, 32, seed=seed + 21), normal(depth, 2, hidden, seed=seed + 22)
    state, x, ids, left = model.start(), embeds[0], list(range(length)), -1
    inputs, logits, held = [], [], []
    for layer in range(depth):
        x = model.run(state, x, ids, layer, layer + 1)
        held.append(len(ids))
        if left >= 0:
            continue
        behind = x[-text[1] :]
        inputs.append(np.concatenate([(behind[:-1] if text[1] > 1 else behind).mean(axis=0), behind[-1]]))
        inner = first[layer].astype(np.float64) @ inputs[-1]
        logits.append(second[layer] @ (inner * (1 + ERF(inner / math.sqrt(2))) / 2))
        if logits[-1][1] > logits[-1][0] and layer < depth - 1:
            left = layer
            stays = [i for i in range(length) if not text[0] <= i < text[0] + n]
            x, ids = x[stays], stays
    params = {
        "function": "tiny_llama_exit",
        "image_start": text[0],
        "image_len": n,
        "text_len": text[1],
        "gate_hidden": hidden,
        **model.params,
    }
    expected = {
        "gate_logits": floats(logits),
        "gate_features": floats(inputs),
        "exit_layer": np.array(left),
        "hidden": floats(model.norm(x))[None],
        "cache_len": np.array(held),
    }
    return {"embeds": embeds, "gate_w1": first, "gate_w2": second, **model.weights}, params, expected


def cases() -> dict[str, Case]:
    return {
        "last_layer_that_can_be_left": llama((5, 4), 21, 6, 2, 12, seed=100),
        "never": llama((5, 4), 21, 6, 2, 12, seed=60),
        "begins_the_prompt": llama((0, 3), 16, 5, 1, 7, seed=180),
        "one_token_of_text": llama((4, 1), 12, 5, 4, 9, seed=340),
    }
