"""What a prompt costs a model that is not wrapped, counted as its report would count it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenreduce.adapters.hooks.kv_cache import num_bytes
from tokenreduce.adapters.upstream.cache import returned_cache
from tokenreduce.adapters.upstream.decoder import layers_holder
from tokenreduce.adapters.upstream.decoder_shape import decoder_shape, ids_of_pictures

if TYPE_CHECKING:
    from torch import Tensor, nn


def prefill_flops(model: nn.Module, lengths: Sequence[int], pictured: Sequence[int] | None = None) -> list[int]:
    """FLOPs of the decoder of ``model`` over prompts of ``lengths`` real tokens, one by one.

    ``pictured`` of them are of pictures or mark their start and end, which matters to experts by modality alone; None: none.
    """
    shape = decoder_shape(layers_holder(model))
    own = [0] * len(lengths) if pictured is None else pictured
    depth = shape.depth
    return [shape.prefill([n] * depth, [0] * depth, [k] * depth) for n, k in zip(lengths, own, strict=True)]


def pictured(model: nn.Module, ids: Tensor) -> list[int]:
    """Tokens of each prompt ``ids`` (B, L) that are of pictures or mark their start and end, as ``prefill_flops`` takes them."""
    return ids_of_pictures(model.config, ids).sum(dim=1).tolist()


def cache_bytes(output: Any, columns: int | None = None) -> int:
    """Bytes of keys and values in the cache that a model returned with ``output``, or that it would hold of ``columns``;
    0 without one."""
    return num_bytes(returned_cache(output), columns)
