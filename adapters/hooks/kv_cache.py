"""A KV cache that is shorter than the text it stands for, and knows both lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.cache_reading import CachedPictures
from tokenreduce.adapters.hooks.coded_cache import CodedLayer
from tokenreduce.adapters.upstream.cache import Cache, CacheLayerMixin, DynamicLayer, held_columns


@dataclass
class DecodeState:
    """What later chunks of a shortened prompt must know; lives on the cache, so that it shares the cache's fate.

    Attributes:
        gap: caller's columns minus cached columns of layer 0.
        real: per decoder layer, (B, P) bool of the cached columns that are real; None when all are. Layers of equal
            history share one tensor.
        shift: per decoder layer, (B,) long to subtract from the caller's position ids; None where ids are kept.
        pictures: what decoding steps choose from; None: they read everything.
    """

    gap: int
    real: list[Tensor | None]
    shift: list[Tensor | None] = field(default_factory=list)
    pictures: CachedPictures | None = None

    def rows(self, pick: Any) -> None:
        """Apply ``pick`` to the batch dimension of everything stored."""
        seen: dict[int, Tensor] = {}

        def once(x: Tensor | None) -> Tensor | None:
            return None if x is None else seen.setdefault(id(x), pick(x))

        self.real = [once(x) for x in self.real]
        self.shift = [once(x) for x in self.shift]
        if self.pictures is not None:
            rows = pick(torch.arange(len(self.pictures.counts)))
            self.pictures = self.pictures.picked(rows.tolist())


class _Reduced:
    """Mixed into the class of a cache: reports the caller's length to callers, the physical one to masks."""

    reduction: DecodeState | None = None

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        length = super().get_seq_length(layer_idx)  # type: ignore[misc]
        if layer_idx != 0 or self.reduction is None:
            return length
        if isinstance(length, Tensor):
            return length + self.reduction.gap * (length > 0)
        return length + self.reduction.gap if length else length

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.reduction = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        if self.reduction is not None:
            self.reduction.rows(lambda x: x[beam_idx.to(x.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        if self.reduction is not None:
            self.reduction.rows(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.reduction is not None:
            self.reduction.rows(lambda x: x.repeat_interleave(repeats, dim=0))


@cache
def _reduced_class(base: type[Cache]) -> type[Cache]:
    return type(f"Reduced{base.__name__}", (_Reduced, base), {})


def state_of(cache: Cache | None) -> DecodeState | None:
    """The state left by an earlier chunk; None for no cache, an empty one, or one never shortened."""
    state = getattr(cache, "reduction", None)
    if state is None or cache is None:
        return None
    length = physical_length(cache, 0)
    return state if isinstance(length, Tensor) or length > 0 else None


def adopt(cache: Cache, state: DecodeState) -> None:
    """Give ``cache`` its state; its class becomes a subclass of what it was."""
    if not isinstance(cache, _Reduced):
        cache.__class__ = _reduced_class(type(cache))  # type: ignore[arg-type]
    cache.reduction = state  # type: ignore[attr-defined]


def physical_length(cache: Cache | None, layer: int) -> Any:
    """Columns really held by ``layer``: an int, or a tensor for static caches.

    A recurrent layer holds none; it counts with the next layer that does.
    """
    if cache is None:
        return 0
    layer = next((i for i in range(layer, len(cache.layers)) if isinstance(cache.layers[i], CacheLayerMixin)), 0)
    return cache.get_query_offset(layer) if isinstance(cache, _Reduced) else cache.get_seq_length(layer)


def keep_columns(cache: Cache, layer: int, index: Tensor) -> None:
    """Keep the columns ``index`` (B, P) of ``layer`` and free the rest."""
    held: Any = cache.layers[layer]
    if isinstance(held, CodedLayer):
        held.keep_columns(index)
        return
    refuse_other_layers(held, "shorten")
    assert held.keys is not None and held.values is not None, "the layer has just run"  # noqa: PT018
    at = index[:, None, :, None]
    held.keys = held.keys.gather(2, at.expand(-1, held.keys.shape[1], -1, held.keys.shape[3]))
    held.values = held.values.gather(2, at.expand(-1, held.values.shape[1], -1, held.values.shape[3]))


def refuse_other_layers(held: object, what: str) -> None:
    """Raise unless ``held`` holds keys as they come, one after another, of which stage 'cache' can do ``what``."""
    if type(held) is not DynamicLayer:
        raise ValueError(
            f"stage 'cache' cannot {what} a {type(held).__name__}; allowed: the layers of a DynamicCache. "
            "Leave out cache_implementation and the cache you pass, or use a method without a cache stage."
        )


def cut(cache: Cache, columns: int) -> None:
    """Keep the first ``columns`` of every layer, all of which hold keys as they come, and no state beside them."""
    if isinstance(cache, _Reduced):
        cache.reduction = None
    layer: Any
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]


def drop_columns(cache: Cache, start: int, stop: int) -> None:
    """Free the columns ``start`` to ``stop`` - 1 of every layer, all of which hold keys as they come."""
    layer: Any
    for layer in cache.layers:
        layer.keys, layer.values = (
            torch.cat([x[:, :, :start], x[:, :, stop:]], dim=2) for x in (layer.keys, layer.values)
        )


def last_columns(cache: Cache, count: int) -> list[tuple[Tensor, Tensor]]:
    """Copies of the keys and values (B, H, n, d) of the last ``count`` columns, layer by layer; empty for none."""
    if not count:
        return []
    layers: list[Any] = cache.layers
    return [(layer.keys[:, :, -count:].clone(), layer.values[:, :, -count:].clone()) for layer in layers]


def append_columns(cache: Cache, columns: list[tuple[Tensor, Tensor]]) -> None:
    """Put back what ``last_columns`` copied."""
    layer: Any
    for layer, (keys, values) in zip(cache.layers, columns):
        layer.keys, layer.values = torch.cat([layer.keys, keys], dim=2), torch.cat([layer.values, values], dim=2)


def num_bytes(cache: Cache | None, columns: int | None = None) -> int:
    """Bytes of keys and values held; with ``columns``, those that layers of the same kind would hold of so many columns.

    Layers with a sliding window hold what fits into it, static ones their whole allocation whatever came in, recurrent
    ones no keys; of what is coded, tensors that layers share count once, and where ``columns`` is given it is not coded.
    """
    total, seen = 0, set[int]()
    for layer in () if cache is None else cache.layers:
        for x in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(x, Tensor) and x.ndim == 4:
                held = x.shape[2] if columns is None else held_columns(layer, columns)
                total += x.shape[0] * x.shape[1] * held * x.shape[3] * x.element_size()
        for x in layer.coded_tensors() if columns is None and isinstance(layer, CodedLayer) else ():
            total += x.numel() * x.element_size() * (id(x) not in seen)
            seen.add(id(x))
    return total
