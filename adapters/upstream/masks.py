"""Mask builders of transformers.

| seam | seen |
| --- | --- |
| `LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]`, taking config, embeddings, 2-D mask, cache and `layer_idx` | 5.17 to 5.24 |
| their `or_mask_function` and `and_mask_function`; `sliding_window_overlay` | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.masking_utils import (
    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
    create_causal_mask,
    sliding_window_overlay,
)

from tokenreduce.adapters.upstream.cache import Cache, cache_argument
from tokenreduce.adapters.upstream.decoder import TOKENWISE

MASK_FUNCTIONS: Mapping[str, Any] = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING


def layer_mask(
    config: Any,
    kind: str,
    cache: Cache | None,
    layer: int,
    hidden: Tensor,
    visible: Tensor | None,
    *,
    also: Callable[..., Tensor] | None = None,
    windowed: bool = True,
    only: Callable[..., Tensor] | None = None,
) -> Any:
    """The mask that transformers makes for a layer of type ``kind``, in the form its attention backend takes.

    None where all is causal without padding, and for layers that mix no tokens.

    Args:
        cache: the cache that, with ``layer``, sizes the mask.
        hidden: (B, W, D) what the layer is given; ``visible``: (B, past + W) bool of real columns, None: all.
        also: mask function of further pairs that see each other, besides causal ones.
        windowed: whether a sliding window cuts those pairs, too.
        only: mask function of the pairs that may see each other at all.
    """
    if kind in TOKENWISE:
        return None
    given: dict[str, Any] = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": visible,
        "position_ids": None,
        "layer_idx": layer,
        cache_argument(create_causal_mask): cache,
    }
    if only is not None:
        given["and_mask_function"] = only
    if also is None:
        return MASK_FUNCTIONS[kind](**given)
    given["or_mask_function"] = also
    if kind != "sliding_attention" or not windowed:
        return MASK_FUNCTIONS[kind](**given)
    return create_causal_mask(and_mask_function=sliding_window_overlay(config.sliding_window), **given)
