"""Position policy: a survivor's rotary position after reduction is the one it had before, or counts along the rest."""

from __future__ import annotations

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr


def positions_seen(model, inputs) -> list[torch.Tensor]:
    """The rotary angle of every token in every decoder layer, as position ids."""
    frequency = model.get_decoder().rotary_emb.inv_freq
    seen = []

    def look(layer, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        angle = torch.atan2(sin[..., -1], cos[..., -1])  # the slowest pair does not wrap at these lengths
        seen.append((angle / frequency[-1]).round().long().expand(len(inputs["input_ids"]), -1))

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in model.get_decoder().layers]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("policy", ["keep", "renumber"])
def test_rotary_positions_per_layer(policy):
    model = llava()
    inputs = prompt(model, [2])
    length = inputs["input_ids"].shape[1]
    methods = tr.HiPrune(keep=8, positions=policy), tr.FastV(keep=3, layer=3, positions=policy)
    with tr.wrapped(model, *methods):
        seen = positions_seen(model, inputs)
        trace = tr.trace(model)
    visual = inputs["input_ids"][0] == model.config.image_token_id
    for layer, positions in enumerate(seen):
        kept = (trace.kept_at[3] if layer >= 3 else trace.kept)[0]
        alive = ~visual
        alive[kept] = True
        expected = torch.arange(length)[alive]
        if policy == "renumber":
            expected = torch.arange(len(expected))
        assert positions[0].tolist() == expected.tolist()


def test_hand_made_position_ids_are_respected():
    model = llava()
    inputs = prompt(model, [1])
    ids = torch.arange(inputs["input_ids"].shape[1])[None] * 2 + 5
    with tr.wrapped(model, "uniform", keep=4):
        seen = positions_seen(model, {**inputs, "position_ids": ids})
        kept = tr.trace(model).kept[0]
    visual = inputs["input_ids"][0] == model.config.image_token_id
    visual[kept] = False
    assert seen[0][0].tolist() == ids[0][~visual].tolist()
