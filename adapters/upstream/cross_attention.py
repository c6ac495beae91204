"""Decoders of transformers that attend across, to rows beside their sequence.

| seam | seen |
| --- | --- |
| Mllama hands its decoder `cross_attention_states` (B * pictures * tiles, R, D) and a mask (B, 1, L, N) | 5.17 to 5.24 |
| the mask holds 0 or the lowest number; tokens that see nothing have a row of zeros there | 5.17 to 5.24 |
| a layer calls such an attention `cross_attn` (Mllama) or `encoder_attn` (BART), with `k_proj` and `v_proj` | 5.17 to 5.24 |
"""

from __future__ import annotations

from typing import Any

from tokenreduce.flops import AcrossShape, products, values_width

STATES = "cross_attention_states"
MASK = "cross_attention_mask"
NAMES = ("cross_attn", "encoder_attn")


def attention_across(layer: Any) -> Any:
    """The attention of a decoder ``layer`` to rows beside the sequence; None for a layer without one."""
    return next((found for name in NAMES if (found := getattr(layer, name, None)) is not None), None)


def layers_across(decoder: Any) -> list[int]:
    """The layers (0-based) of ``decoder`` that attend across."""
    return [i for i, layer in enumerate(decoder.layers) if attention_across(layer) is not None]


def across_shape(decoder: Any) -> AcrossShape:
    """What attending across costs in all layers of ``decoder`` together."""
    found = [attention_across(decoder.layers[i]) for i in layers_across(decoder)]
    rows = sum(products(attention.k_proj) + products(attention.v_proj) for attention in found)
    return AcrossShape(rows, sum(2 * values_width(attention) for attention in found))
