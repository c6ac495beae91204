"""Inside a decoder of transformers: kinds of layers, rotary tables.

| seam | seen |
| --- | --- |
| `config.layer_types[i]` names the mask of layer i; without it, `config.sliding_window` tells | 5.17 to 5.24 |
| `decoder.rotary_emb(hidden, ids)`, with a third argument `layer_type` where layers differ (Gemma 3) | 5.17 to 5.24 |
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def layer_type(config: Any, layer: int) -> str:
    """The kind of decoder layer ``layer``: ``full_attention``, ``sliding_attention``, ``linear_attention``, ..."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return kinds[layer]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def rotary_embedding(decoder: Any, hidden: Tensor, ids: Tensor, kind: str) -> tuple[Tensor, ...]:
    """The rotary table of ``ids`` for layers of type ``kind``."""
    embed = decoder.rotary_emb
    by_kind = "layer_type" in inspect.signature(embed.forward).parameters
    return embed(hidden, ids, kind) if by_kind else embed(hidden, ids)
