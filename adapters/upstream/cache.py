"""The KV cache as transformers passes it around: under which name, and how its layers tell what they hold.

| seam | seen |
| --- | --- |
| the argument of every model, decoder and layer, and the field of every output, is called `past_key_values` | up to 5.23 |
| the same, called `cache`; callers may still write the old name | from 5.24 |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from tokenreduce.adapters.upstream.seams import seam_changed

__all__ = [
    "Cache",
    "CacheLayerMixin",
    "DynamicCache",
    "DynamicLayer",
    "cache_argument",
    "cached_keys",
    "given_cache",
    "held_columns",
    "returned_cache",
    "stray_cache",
]

#: names under which a cache travels, the newest first
NAMES = ("cache", "past_key_values")
#: layers that hold keys as they are, the earliest first
PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)


@cache
def cache_argument(function: Callable[..., Any]) -> str:
    """The name of the argument under which ``function``, a forward or a mask builder, takes its cache.

    Errors: ``UpstreamChanged`` when it takes none under a known name.
    """
    taken = inspect.signature(function).parameters
    for name in NAMES:
        if name in taken:
            return name
    raise seam_changed(
        "transformers",
        f"the cache argument of {getattr(function, '__qualname__', function)}",
        f"one of {', '.join(NAMES)}",
        ", ".join(taken),
    )


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the ``arguments`` of a call, whatever it is called; None for none."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def returned_cache(output: Any) -> Any:
    """The cache in what a decoder returned; None for none."""
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)


def cached_keys(cache: Any, layer: int, columns: int) -> Tensor:
    """(B, H_kv, P, d) the keys that ``layer`` of ``cache`` holds of the ``columns`` that have come in, or of the latest.

    Errors: ``ValueError`` for a layer that does not hold them as they are.
    """
    held = cache.layers[layer]
    if type(held) not in PLAIN or held.keys is None:
        raise ValueError(
            f"the keys that a {type(held).__name__} holds of earlier turns cannot be read before the layer runs; allowed with a "
            "method that looks ahead: a DynamicCache or a StaticCache, or all turns in one prompt"
        )
    return held.keys[:, :, :columns]


def stray_cache(arguments: Mapping[str, Any]) -> str | None:
    """The name of an argument that holds a cache but is not known to; None where there is none."""
    return next((name for name, x in arguments.items() if isinstance(x, Cache) and name not in NAMES), None)


def held_columns(layer: Any, columns: int) -> int:
    """Columns that ``layer`` of a cache, in use already, holds once ``columns`` have come in."""
    if not isinstance(layer, DynamicLayer):
        return int(layer.keys.shape[-2])  # allocated at once
    window: int = getattr(layer, "sliding_window", 0)
    return min(columns, window - 1) if layer.is_sliding else columns
