"""FastV: attention maps to a shortened sequence, or a whole tiny Llama run through a wrapped LLaVA."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from golden_cases import llama as decoder
from golden_cases.common import FACTS, make, query_and_key, show, visual_span
from golden_cases.vectors import Meta
from torch import Tensor

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
    """The Llama given by its weights, through prefill and one decode step."""
    embeds = inputs["embeds"]
    image = visual_span(params, embeds.shape[1])
    ran = decoder.run(inputs, params, make(FastV, params, layer=params["K"]), [image] * len(embeds))
    params.agree(decode_position=int(ran.ids[-1]))  # counts dropped tokens, too
    assert ran.decoded is not None
    kept = ran.columns(params["K"])
    return {
        "keep_sequence": kept[0] if len(kept) == 1 else kept,
        "hidden": ran.last(params["K"]),
        "decode_hidden": ran.decoded,
    }
