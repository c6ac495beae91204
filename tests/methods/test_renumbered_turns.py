"""Position ids counted along what is left, layer by layer, over turns that begin with a picture, by a decoder written out."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from golden_cases.llama import build
from golden_cases.vectors import Meta
from golden_settings.plain import Decoder, best, normal, softmax

import tokenreduce as tr
from tokenreduce.adapters.families.llava import Llava

N, TEXT, DEPTH = 12, 5, 5


def turn(model, state, x, cuts):
    """A turn of ``N`` visual rows and text behind them; each layer counts on from what it holds."""
    left, layer = N, 0
    for cut, keep in [*cuts.items(), (model.depth, None)]:
        held = state.keys[layer].shape[1] if state.keys[layer].size else 0
        ids = list(range(held, held + len(x)))
        x = model.run(state, x, ids, layer, cut)
        layer = cut
        if keep is None:
            return model.norm(x)
        held = state.keys[cut].shape[1] if state.keys[cut].size else 0
        q, k, _ = model.projected(x, range(held, held + len(x)), cut)
        if held:  # the layer to come looks behind its own cache
            k = np.concatenate([state.keys[cut], k], axis=1)
        row = softmax(q[:, -1:] @ k.transpose(0, 2, 1) / model.size**0.5).mean(axis=0)[0][held:]
        kept = sorted(best(list(row[:left]), keep))
        x, left = x[[*kept, *range(left, len(x))]], keep
    return None


@pytest.mark.parametrize("counts", [((5, 2), (5, 2)), ((3, 1), (9, 4))])
def test_every_layer_counts_on_from_what_it_holds(counts):
    plain = Decoder(4, 2, DEPTH, 16, seed=10)
    rows = normal(2, N + TEXT, 16, seed=20)
    # each picture keeps less than it shows, so a first token that is dropped would leave a gap before the text
    table = torch.from_numpy(np.concatenate([rows.reshape(-1, 16), np.full((1, 16), 7, np.float32)]))
    marker = len(table) - 1
    inputs = Meta(
        "input", {"embeds": torch.from_numpy(rows)} | {k: torch.from_numpy(v) for k, v in plain.weights.items()}
    )
    model = build(inputs, Meta("parameter", plain.params), table, marker, N)
    state, cache, found = plain.start(), None, []
    with mock.patch.object(Llava, "cells", list(range(N))), torch.no_grad():
        for t, (own, count) in enumerate(zip(rows, counts)):
            features = SimpleNamespace(pooler_output=[torch.from_numpy(own[:N])])
            model.model.get_image_features = lambda features=features, **_: features
            ratios = tuple(k / N for k in count)
            method = tr.PyramidDrop(layers=(1, 3), ratios=ratios, positions="renumber")
            ids = torch.tensor([[marker] * N + list(range(t * (N + TEXT) + N, (t + 1) * (N + TEXT)))])
            mask = torch.ones(1, (t + 1) * (N + TEXT), dtype=torch.long)
            with tr.wrapped(model, method):
                given = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 1, 1), "attention_mask": mask}
                out = model.model(**given, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                kept = tr.trace(model).images[-1].kept(DEPTH - 1)
            assert len(kept) == count[1]
            found.append(out.last_hidden_state[0, -TEXT:])
    for own, count, hidden in zip(rows, counts, found):
        wanted = turn(plain, state, own, dict(zip((1, 3), count)))
        torch.testing.assert_close(hidden, torch.from_numpy(wanted[-TEXT:]).float(), atol=2e-5, rtol=1e-4)
