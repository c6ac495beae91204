"""What the layers of a decoder of transformers cost, read off their modules and the configuration.

| seam | seen |
| --- | --- |
| the output projection of an attention is its last matrix | 5.17 to 5.24 |
| `experts` that take hidden states alone run all of their `num_experts` for every token (Llama 4) | 5.17 to 5.24 |
| names for experts per token, how far a layer looks back, the state of a linear-attention layer | 5.17 to 5.24 |
| `config.mamba_num_heads`: linear attention is a selective scan, by chunks of `config.chunk_size` | 5.17 to 5.24 |
| `config.qk_head_dim`: latent attention, whose keys are wider than its values | 5.17 to 5.24 |
| a layer with `altup` multiplies `config.altup_num_inputs` states of a token with each other (Gemma 3n) | 5.17 to 5.24 |
| a token passes `text_moe`, or `vision_moe` where the argument `moe_mm_token_type_ids` is not 0 (Ernie 4.5 VL) | 5.17 to 5.24 |
| it is 1 or 2 at placeholders and at the ids that `config` names as start and end of a picture or video | 5.17 to 5.24 |
| latent attention with `expand_kv` makes them of what is cached, through `kv_b_proj`, in every call | 5.17 to 5.24 |
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.upstream.decoder import attention_of, layer_type
from tokenreduce.flops import DecoderShape, DeltaState, LayerShape, ScanState, products, values_width
from tokenreduce.uploading import uploaded

EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")
TEXT_EXPERTS, PICTURE_EXPERTS = ".text_moe", ".vision_moe"
MODALITIES = "moe_mm_token_type_ids"
MARKS = ("token_id", "start_token_id", "end_token_id")
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def decoder_shape(decoder: Any) -> DecoderShape:
    """The shape of ``decoder``, layer by layer."""
    config, chosen = decoder.config, _experts_per_token(decoder)
    layers = [
        _by_modality(_layer_shape(layer, config, i, chosen), layer, chosen) for i, layer in enumerate(decoder.layers)
    ]
    outside = products(decoder, chosen) - sum(products(layer, chosen) for layer in decoder.layers)
    return DecoderShape(tuple(layers), outside)


def multiply_adds(decoder: Any, module: Any) -> int:
    """Those of one token that passes a ``module`` of ``decoder``."""
    return products(module, _experts_per_token(decoder))


def with_experts_of_pictures(arguments: Mapping[str, Any]) -> Tensor | None:
    """(B, L) bool: columns that pass experts of pictures, as ``arguments`` of a decoder tell; None: they name none."""
    kinds = arguments.get(MODALITIES)
    return kinds.bool() if isinstance(kinds, Tensor) else None


def ids_of_pictures(config: Any, ids: Tensor) -> Tensor:
    """(B, L) bool: which of the ``ids`` of a prompt are placeholders of pictures, or the start or end of one."""
    names = [f"{medium}_{mark}" for medium in ("image", "video") for mark in MARKS]
    known = [i for name in names if (i := getattr(config, name, None)) is not None]
    return torch.isin(ids, uploaded(known, ids.device))


def _by_modality(shape: LayerShape, layer: Any, chosen: int) -> LayerShape:
    """``shape`` of a layer that counts experts of text and of pictures, of which a token passes one kind."""
    text, pictures = (
        sum(products(module, chosen) for name, module in layer.named_modules() if name.endswith(kind))
        for kind in (TEXT_EXPERTS, PICTURE_EXPERTS)
    )
    return replace(shape, products=shape.products - pictures, pictured=pictures - text)


def _experts_per_token(decoder: Any) -> int:
    chosen = next((n for name in EXPERTS_PER_TOKEN if (n := getattr(decoder.config, name, None))), 1)
    mixtures = (module for name, module in decoder.named_modules() if name.endswith(".experts"))
    every = (m.num_experts for m in mixtures if hasattr(m, "num_experts") and _is_handed_states_alone(m))
    return next(every, chosen)


def _is_handed_states_alone(experts: Any) -> bool:
    return len(inspect.signature(experts.forward).parameters) == 1


def _layer_shape(layer: Any, config: Any, index: int, chosen: int) -> LayerShape:
    kind, matrices = layer_type(config, index), products(layer, chosen)
    if hasattr(layer, "altup"):
        matrices += config.altup_num_inputs**2 * config.hidden_size
    if kind == "linear_attention" and hasattr(config, "linear_num_value_heads"):
        delta = DeltaState(config.linear_key_head_dim, config.linear_value_head_dim, config.linear_num_value_heads)
        return LayerShape(matrices, state=delta)
    if kind == "linear_attention" and hasattr(config, "mamba_num_heads"):
        scan = ScanState(config.ssm_state_size, config.mamba_head_dim, config.mamba_num_heads, config.chunk_size)
        return LayerShape(matrices, state=scan)
    attention = attention_of(layer)
    if attention is None or not kind.endswith("attention"):
        return LayerShape(matrices)
    values = values_width(attention)
    key_width = getattr(config, "qk_head_dim", None)
    keys = values if key_width is None else key_width * config.num_attention_heads
    window = getattr(config, WINDOWS[kind], None) if kind in WINDOWS else None
    again = products(attention.kv_b_proj) if hasattr(attention, "expand_kv") else 0
    return LayerShape(matrices, keys + values, again, window)
