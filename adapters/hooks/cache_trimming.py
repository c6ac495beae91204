"""After the last layer: the cache keeps what cache steps leave in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import keep_columns, physical_length, refuse_other_layers
from tokenreduce.adapters.hooks.sequence_packing import Packing, repacked, scatter
from tokenreduce.groups import ImageGroup


def trim_cache(reduced: DecoderPass, hidden: Tensor) -> None:
    """Carry out the cache steps: from their layer on, the cache keeps the tokens that survived everything, or means of them.

    Errors: ``ValueError`` for a plan that makes features, of which a cache holds none.
    """
    final = left = reduced.packings.at(reduced.depth - 1)
    for layer in reduced.pipeline.layers("cache"):
        reduced.hidden = (hidden, final.slot)
        for _, step in reduced.pipeline.at("cache", layer):
            if step.survivors_of is not None and step.through is not None:
                _trim(reduced, range(layer, step.through + 1), reduced.packings.at(step.survivors_of))
        came = reduced.groups
        groups, _ = reduced.run("cache", layer, [group.showing(hidden, final.slot) for group in came])
        if any(plan.features is not None for plan in reduced.decisions["cache", layer]):
            raise ValueError(
                "a Reduction at stage 'cache' that makes the features of its rows, where there are keys and values; allowed: "
                "tokens selected, or averaged, as by Reduction.merge"
            )
        left = repacked(left, came, groups)
        if any(step.survivors_of is None and step.codec is None for _, step in reduced.pipeline.at("cache", layer)):
            average = partial(_average, reduced, layer, came) if any(group.moved for group in groups) else None
            _trim(reduced, range(layer, reduced.depth), left, average)
        reduced.groups = [group.settle() for group in groups]
        if reduced.cache is not None and any(
            step.decode_ids == "cache_length" for _, step in reduced.pipeline.at("cache", layer)
        ):
            _count_cache_as_position(reduced)


def _trim(
    reduced: DecoderPass, layers: range, survivors: Packing, average: Callable[[int, Packing], None] | None = None
) -> None:
    """Let the caches of ``layers`` forget what is not among the ``survivors`` of this chunk, once it is in their ``average``."""
    if reduced.cache is None:
        return
    holders = reduced.masks.holders
    for i in layers:
        if holders[i] != i:
            continue
        held, past = reduced.cached.get(i, reduced.packings.at(i)), reduced.masks.past[i]
        if sum(held.counts) <= sum(survivors.counts):
            continue  # survivors of a later place are among those of an earlier one
        if average is not None:
            average(i, held)
        slots = held.slot.gather(1, survivors.order) + past
        old = torch.arange(past, device=slots.device).expand(slots.shape[0], past)
        keep_columns(reduced.cache, i, torch.cat([old, slots], dim=1))
        for reader in (layer for layer, holder in enumerate(holders) if holder == i):
            reduced.masks.trimmed(reader, survivors)
            reduced.cached[reader] = survivors


def _average(reduced: DecoderPass, step: int, came: list[ImageGroup], layer: int, held: Packing) -> None:
    """Write the mean keys and values of rows that merged at the cache step of layer ``step`` where these sit in ``layer``.

    ``came``: the images in front of that step. Its plans, as decided, carry keys and values as they would carry features.
    """
    assert reduced.cache is not None
    cached: Any = reduced.cache.layers[layer]
    refuse_other_layers(cached, "average what is held by")
    for name in ("keys", "values"):
        heads = getattr(cached, name)
        rows = heads.transpose(1, 2).flatten(2)
        slot = held.slot + reduced.masks.past[layer]
        groups, _ = reduced.run("cache", step, [group.showing(rows, slot) for group in came])
        for group in groups:
            if group.moved and group.features is not None:
                rows = scatter(rows, slot[group.samples[:, None], group.seats], group.samples, group.features)
        setattr(cached, name, rows.unflatten(2, (heads.shape[1], -1)).transpose(1, 2))


def _count_cache_as_position(reduced: DecoderPass) -> None:
    """From here on a new token's position id in a layer is the number of real tokens that layer's cache holds."""
    assert reduced.positions.end is not None
    following = reduced.positions.end + 1
    shifts: dict[int, Tensor] = {}
    for i, real in enumerate(reduced.masks.real):
        length = int(physical_length(reduced.cache, i))
        held = following.new_full(following.shape, length) if real is None else real.sum(dim=1)
        key = length if real is None else id(real)
        reduced.positions.continue_at(i, shifts.setdefault(key, following - held))
