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

from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from tokenreduce.adapters.upstream.seams import seam_changed

__all__ = [
    "Cache",
    "CacheLayerMixin",
    "DynamicCache",
    "DynamicLayer",
    "cache_argument",
    "given_cache",
    "held_columns",
    "returned_cache",
    "stray_cache",
]

#: names under which a cache travels, the newest first
NAMES = ("cache", "past_key_values")


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


def stray_cache(arguments: Mapping[str, Any]) -> str | None:
    """The name of an argument that holds a cache but is not known to; None where there is none."""
    return next((name for name, x in arguments.items() if isinstance(x, Cache) and name not in NAMES), None)


def held_columns(layer: Any, columns: int) -> int:
    """Columns that ``layer`` of a cache, in use already, holds once ``columns`` have come in."""
    if not isinstance(layer, DynamicLayer):
        return int(layer.keys.shape[-2])  # allocated at once
    window: int = getattr(layer, "sliding_window", 0)
    return min(columns, window - 1) if layer.is_sliding else columns
