"""FastV: attention maps to a shortened sequence, or a whole tiny Llama run through a wrapped LLaVA."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import models
import torch
from golden_cases.common import FACTS, make, query_and_key, show, visual_span
from golden_cases.vectors import Meta
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

import tokenreduce as tr
from tokenreduce.adapters.families.llava import Llava
from tokenreduce.adapters.hooks.sequence_packing import Packing, carried, repacked
from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.fastv import FastV


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    served = {"select": select, "tiny_llama": llama}
    return params.one_of("function", served, "select" if "attn" in inputs else "tiny_llama")(inputs, params)


def select(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """(B, H, T, T) maps of layer K - 1: who is left from layer K on, at which position ids."""
    attention = inputs["attn"]
    batch, _, length, _ = attention.shape
    span = torch.arange(length)[visual_span(params, length)]
    method = make(FastV, params, layer=params["K"])
    assert isinstance(method, FastV)
    query, key = query_and_key(attention)
    if method.query == "last":
        received = attention_row(query[:, :, -1:], key, 1.0)[:, 0]
    else:
        received = attention_received(query, key, 1.0)
    layout = Layout(1, len(span))
    facts = dataclasses.replace(FACTS, decoder_depth=params.get("layers", max(FACTS.decoder_depth, method.layer + 1)))
    tokens, plan = show(method, [received[:, span]], layout, facts=facts)

    (group,) = before = group_images([Image(b, span, layout) for b in range(batch)], span.device)
    after = group.apply(plan, tokens.stage, tokens.layer, method.name)
    everything = Packing.untouched(torch.ones(batch, length, dtype=torch.bool), [length] * batch)
    packing = repacked(everything, before, after)
    return {"keep_sequence": packing.order, "position_ids": carried(packing, after), "key_mask": packing.alive}


def llama(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The Llama given by its weights as the language model of a LLaVA, wrapped, through prefill and one decode step.

    Text embeddings reach it through the embedding table, one row per position; image embeddings in place of the
    projector's output.
    """
    embeds, follow = inputs["embeds"], inputs["next_embed"]
    batch, length, _ = embeds.shape
    image = visual_span(params, length)
    marker = batch * length
    ids = torch.arange(marker).view(batch, length).clone()
    ids[:, image] = marker
    table = torch.cat([embeds.flatten(0, 1), torch.full_like(embeds[0, :1], 7.0), follow.flatten(0, 1)])
    model = build(inputs, params, table, marker)
    features = SimpleNamespace(pooler_output=[row[image] for row in embeds])
    model.model.get_image_features = lambda **_: features

    # an image of just as many tokens as the vector has: the first cells of a grid that need not be full
    cells = mock.patch.object(Llava, "cells", list(range(image.stop - image.start)))
    with cells, torch.no_grad():
        tr.wrap(model, make(FastV, params, layer=params["K"]))
        pixels = torch.zeros(batch, 3, 1, 1)
        prefill = model.model(input_ids=ids, pixel_values=pixels, use_cache=True)
        cache = prefill.past_key_values
        params.agree(decode_position=cache.get_seq_length())  # counts dropped tokens, too
        last = torch.arange(batch)[:, None] + marker + 1
        decode = model.model(input_ids=last, past_key_values=cache, use_cache=True)

    text = torch.arange(length)
    text = text[(text < image.start) | (text >= image.stop)]
    kept = torch.stack([torch.cat([text, row]).sort().values for row in tr.trace(model).kept_at[params["K"]]])
    full = prefill.last_hidden_state
    return {
        "keep_sequence": kept[0] if batch == 1 else kept,
        "hidden": full.gather(1, kept[..., None].expand(-1, -1, full.shape[-1])),
        "decode_hidden": decode.last_hidden_state,
    }


def build(inputs: Meta[Tensor], params: Meta[Any], table: Tensor, marker: int) -> LlavaForConditionalGeneration:
    """A LLaVA whose Llama has the given weights; its tower is there for its shape only."""
    heads, length, depth = params["heads"], inputs["embeds"].shape[1], len(inputs["w_q"])
    params.agree(layers=depth, hidden=table.shape[1])
    text = models.text("llama", depth=depth) | {
        "vocab_size": len(table),
        "hidden_size": table.shape[1],
        "intermediate_size": inputs["w_gate"].shape[1],
        "num_attention_heads": heads,
        "num_key_value_heads": params["kv_heads"],
        "head_dim": inputs["w_q"].shape[1] // heads,
        "max_position_embeddings": length + 1,
        "rms_norm_eps": params["rms_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": params["rope_theta"]},
    }
    side = math.ceil(math.sqrt(params["image_len"]))
    config = LlavaConfig(vision_config=models.vision("clip", side, depth=2), text_config=text, image_token_index=marker)
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config).eval()
    decoder = model.get_decoder()
    state = {"embed_tokens.weight": table, "norm.weight": inputs["w_norm"]}
    for name, part in {
        "w_q": "self_attn.q_proj",
        "w_k": "self_attn.k_proj",
        "w_v": "self_attn.v_proj",
        "w_o": "self_attn.o_proj",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
        "w_ln1": "input_layernorm",
        "w_ln2": "post_attention_layernorm",
    }.items():
        state |= {f"layers.{i}.{part}.weight": weight for i, weight in enumerate(inputs[name])}
    decoder.load_state_dict(state, strict=True)
    return model
