"""Attention masks of a shortened decoder layer: causal, sliding, and with blocks of tokens that attend both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
    create_causal_mask,
    sliding_window_overlay,
)

from tokenreduce.adapters.upstream.cache import Cache, cache_argument

MASK_FUNCTIONS: Mapping[str, Any] = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING


def layer_mask(
    config: Any, kind: str, blocks: Tensor | None, past: int, windowed: bool, cache: Cache | None, **given: Any
) -> Any:
    """The mask that transformers makes for a layer of type ``kind``, in the form its attention backend takes.

    Args:
        blocks: (B, W) long, block of each token of this chunk, -1 for none; equal blocks attend to each other both ways.
        past: columns the layer's cache held before this chunk.
        windowed: whether a sliding window cuts blocks, too, or lets each see all of itself.
        cache: the cache that sizes the mask.
        given: further arguments of transformers' mask functions.
    """
    given[cache_argument(create_causal_mask)] = cache
    if blocks is None:
        return MASK_FUNCTIONS[kind](config=config, **given)
    given["or_mask_function"] = both_ways(blocks, past)
    if kind != "sliding_attention" or not windowed:
        return MASK_FUNCTIONS[kind](config=config, **given)
    return create_causal_mask(config=config, and_mask_function=sliding_window_overlay(config.sliding_window), **given)


def both_ways(blocks: Tensor, past: int) -> Callable[..., Tensor]:
    """Mask function: whether query and key belong to the same of the ``blocks`` (B, W), which start at column ``past``."""
    last = blocks.shape[1] - 1

    def same_block(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (k >= past) & (k - past <= last)
        mine, other = blocks[b, q - past], blocks[b, (k - past).clamp(0, last)]
        return inside & (mine == other) & (mine >= 0)

    return same_block


def ends_of(blocks: Tensor) -> Tensor:
    """(B, W) long, last slot of the block of each slot of ``blocks`` (B, W); its own where it is in none."""
    slot = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
    free = blocks < 0
    ends = torch.full_like(blocks, -1).scatter_reduce(1, blocks.clamp_min(0), torch.where(free, -1, slot), "amax")
    return torch.where(free, slot, ends.gather(1, blocks.clamp_min(0)))
