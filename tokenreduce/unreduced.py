"""What a prompt costs a model that is not wrapped, counted as its report would count it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenreduce.adapters.hooks.kv_cache import num_bytes
from tokenreduce.adapters.upstream.cache import returned_cache
from tokenreduce.adapters.upstream.decoder_shape import decoder_shape

if TYPE_CHECKING:
    from torch import nn


def prefill_flops(model: nn.Module, lengths: Sequence[int]) -> list[int]:
    """FLOPs of the decoder of ``model`` over prompts of ``lengths`` real tokens, one by one."""
    shape = decoder_shape(model.get_decoder())  # type: ignore[operator]
    return [shape.prefill([length] * shape.depth, [0] * shape.depth) for length in lengths]


def cache_bytes(output: Any, columns: int | None = None) -> int:
    """Bytes of keys and values in the cache that a model returned with ``output``, or that it would hold of ``columns``;
    0 without one."""
    return num_bytes(returned_cache(output), columns)
