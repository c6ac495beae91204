"""Inside a decoder of transformers: kinds of layers, rotary tables.

| seam | seen |
| --- | --- |
| `config.layer_types[i]` names the mask of layer i; without it, `config.sliding_window` tells | 5.17 to 5.24 |
| rows of the rotary table reach every layer as `position_embeddings` | 5.17 to 5.24 |
| Qwen3-VL hands its decoder `deepstack_visual_embeds`, a list, and `visual_pos_masks` | 5.17 to 5.24 |
| `attn_logit_softcapping` of an attention module (Gemma 2) | 5.17 to 5.24 |
| `apply_rotary_pos_emb(q, k, cos, sin)` of a decoder's own file, where ids have one axis | 5.17 to 5.24 |
| `decoder.norm` follows the last layer | 5.17 to 5.24 |
| a layer norms what enters its attention by `input_layernorm` | 5.17 to 5.24 |
| `decoder.rotary_emb(hidden, ids)`, with a third argument `layer_type` where layers differ (Gemma 3) | 5.17 to 5.24 |
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import Tensor

from tokenreduce.adapters.upstream.seams import seam_changed

ROTARY = "position_embeddings"
ATTENTION_NORM = "input_layernorm"
DEEP_FEATURES, DEEP_PLACES = "deepstack_visual_embeds", "visual_pos_masks"


def layer_type(config: Any, layer: int) -> str:
    """The kind of decoder layer ``layer``: ``full_attention``, ``sliding_attention``, ``linear_attention``, ..."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return kinds[layer]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def softcap_of(attention: Any) -> float | None:
    """The soft cap of the logits of an ``attention`` module; None for none."""
    return getattr(attention, "attn_logit_softcapping", None)


def attention_norm(layer: Any) -> Any:
    """The norm through which a decoder ``layer`` hands its input to its attention.

    Errors: ``UpstreamChanged`` for a layer without one of a known name.
    """
    norm = getattr(layer, ATTENTION_NORM, None)
    if norm is None:
        names = ", ".join(name for name, _ in layer.named_children())
        raise seam_changed(
            "transformers", f"the norm before the attention of a {type(layer).__name__}", ATTENTION_NORM, names
        )
    return norm


def rotary_embedding(decoder: Any, hidden: Tensor, ids: Tensor, kind: str) -> tuple[Tensor, ...]:
    """The rotary table of ``ids`` for layers of type ``kind``."""
    embed = decoder.rotary_emb
    by_kind = "layer_type" in inspect.signature(embed.forward).parameters
    return embed(hidden, ids, kind) if by_kind else embed(hidden, ids)


def final_norm(decoder: Any) -> Any:
    """The norm that follows the last layer of ``decoder``."""
    return decoder.norm


def rotated_back(attention: Any, decoder: Any, keys: Tensor, ids: Tensor, kind: str) -> Tensor:
    """``keys`` (B, H, N, d) of a layer of type ``kind`` as they were, had every token come ``ids`` (B, 1) places sooner."""
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    cos, sin = rotary_embedding(decoder, keys, ids, kind)
    return rotate(keys, keys, cos, -sin)[1]
