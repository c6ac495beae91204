"""A decoder given by its weights as the language model of a LLaVA, wrapped, through prefill and one decode step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import models
import torch
from golden_cases.vectors import Meta
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

import tokenreduce as tr
from tokenreduce.adapters.families.llava import Llava
from tokenreduce.method import Method

WEIGHTS = {
    "w_q": "self_attn.q_proj.weight",
    "w_k": "self_attn.k_proj.weight",
    "w_v": "self_attn.v_proj.weight",
    "w_o": "self_attn.o_proj.weight",
    "b_q": "self_attn.q_proj.bias",
    "b_k": "self_attn.k_proj.bias",
    "b_v": "self_attn.v_proj.bias",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
    "w_ln1": "input_layernorm.weight",
    "w_ln2": "post_attention_layernorm.weight",
}


class Run(NamedTuple):
    """What a wrapped decoder did.

    Attributes:
        hidden: (B, L, C) after the last layer, a dropped column repeating the one before it.
        decoded: (B, 1, C) of the next token, None where the vector has none.
        trace: where the tokens went; ``images``, the columns of each sample's image.
        held: (layers,) columns in the cache of each layer after the prompt; ``ids``, the position id that the next token
            of the first sample has there.
        unnormed: (B, K, C) what enters the last norm, in the prompt.
    """

    hidden: Tensor
    decoded: Tensor | None
    trace: tr.Trace
    images: list[slice]
    held: Tensor
    ids: Tensor
    unnormed: Tensor

    def columns(self, layer: int) -> Tensor:
        """(B, K) columns of the prompt that ``layer`` works on."""
        rows = []
        for image, traced in zip(self.images, self.trace.images):
            alive = torch.ones(self.hidden.shape[1], dtype=torch.bool)
            alive[image] = False
            alive[traced.seats(layer)] = True
            rows.append(alive.nonzero()[:, 0])
        return torch.stack(rows)

    def last(self, layer: int) -> Tensor:
        """(B, K, C) the hidden states of these columns after the last layer."""
        columns = self.columns(layer)
        return self.hidden.gather(1, columns[..., None].expand(-1, -1, self.hidden.shape[-1]))


def run(
    inputs: Meta[Tensor],
    params: Meta[Any],
    method: Method,
    images: Sequence[slice],
    kind: str = "llama",
    prompt_length: Sequence[int] | None = None,
) -> Run:
    """``method`` on the prompt ``embeds`` whose row b has one image in the columns ``images[b]``, all equally long.

    Text embeddings reach the decoder through the embedding table, one row per position; image embeddings in place of the
    projector's output.
    """
    embeds = inputs["embeds"]
    batch, length, width = embeds.shape
    follow = inputs["next_embed"] if "next_embed" in inputs else embeds.new_zeros(batch, 1, width)
    marker = batch * length
    ids = torch.arange(marker).view(batch, length).clone()
    for row, image in enumerate(images):
        ids[row, image] = marker
    (n,) = {image.stop - image.start for image in images}
    table = torch.cat([embeds.flatten(0, 1), torch.full_like(embeds[0, :1], 7.0), follow.flatten(0, 1)])
    model = build(inputs, params, table, marker, n, kind)
    features = SimpleNamespace(pooler_output=[row[image] for row, image in zip(embeds, images)])
    model.model.get_image_features = lambda **_: features
    # an image of just as many tokens as the vector has: the first cells of a grid that need not be full
    cells = mock.patch.object(Llava, "cells", list(range(n)))
    normed: list[Tensor] = []
    model.get_decoder().norm.register_forward_pre_hook(lambda _, args: normed.append(args[0]))
    with cells, torch.no_grad():
        tr.wrap(model, method)
        pixels = torch.zeros(batch, 3, 1, 1)
        more = {} if prompt_length is None else {"prompt_length": prompt_length}
        prefill = model.model(input_ids=ids, pixel_values=pixels, use_cache=True, **more)
        cache = prefill.past_key_values
        held = torch.tensor([layer.keys.shape[2] for layer in cache.layers])
        shifts = cache.reduction.shift
        following = torch.tensor([length - (0 if s is None else int(s[0])) for s in shifts])
        trace, decoded = tr.trace(model), None
        if "next_embed" in inputs:
            last = torch.arange(batch)[:, None] + marker + 1
            decoded = model.model(input_ids=last, past_key_values=cache, use_cache=True).last_hidden_state
    return Run(prefill.last_hidden_state, decoded, trace, list(images), held, following, normed[0])


def build(
    inputs: Meta[Tensor], params: Meta[Any], table: Tensor, marker: int, n: int, kind: str = "llama"
) -> LlavaForConditionalGeneration:
    """A LLaVA whose decoder of ``kind`` has the given weights; its tower is there for its shape only, ``n`` tokens or more."""
    heads, length, depth = params["heads"], inputs["embeds"].shape[1], len(inputs["w_q"])
    params.agree(layers=depth, hidden=table.shape[1])
    text = models.text(kind, depth=depth) | {
        "vocab_size": len(table),
        "hidden_size": table.shape[1],
        "intermediate_size": inputs["w_gate"].shape[1],
        "num_attention_heads": heads,
        "num_key_value_heads": params["kv_heads"],
        "head_dim": inputs["w_q"].shape[1] // heads,
        "max_position_embeddings": length + 1,
        "rms_norm_eps": params["rms_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": params["rope_theta"]},
        "max_window_layers": depth,
    }
    vision = models.vision("clip", math.ceil(math.sqrt(n)), depth=2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=marker)
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config).eval()
    state = {"embed_tokens.weight": table, "norm.weight": inputs["w_norm"]}
    for name, part in WEIGHTS.items():
        if name in inputs:
            state |= {f"layers.{i}.{part}": weight for i, weight in enumerate(inputs[name])}
    model.get_decoder().load_state_dict(state, strict=True)
    return model
