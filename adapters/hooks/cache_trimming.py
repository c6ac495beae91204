"""After the last layer: the cache keeps what cache steps leave in it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import keep_columns, physical_length
from tokenreduce.adapters.hooks.sequence_packing import Packing, repacked


def trim_cache(reduced: DecoderPass, hidden: Tensor) -> None:
    """Carry out the cache steps: from their layer on, the cache keeps the tokens that survived everything."""
    for layer in reduced.pipeline.layers("cache"):
        final = reduced.packings.at(reduced.depth - 1)
        reduced.hidden = (hidden, final.slot)
        for _, step in reduced.pipeline.at("cache", layer):
            if step.survivors_of is not None and step.through is not None:
                _trim(reduced, range(layer, step.through + 1), reduced.packings.at(step.survivors_of))
        groups = [group.showing(hidden, final.slot) for group in reduced.groups]
        groups, _ = reduced.run("cache", layer, groups)
        if any(group.moved for group in groups):
            raise ValueError("a cache step must select tokens in order; merging cached keys is not supported")
        survivors = repacked(final, reduced.groups, groups)
        reduced.groups = [group.settle() for group in groups]
        if any(step.survivors_of is None and step.codec is None for _, step in reduced.pipeline.at("cache", layer)):
            _trim(reduced, range(layer, reduced.depth), survivors)
        if reduced.cache is not None and any(
            step.decode_ids == "cache_length" for _, step in reduced.pipeline.at("cache", layer)
        ):
            _count_cache_as_position(reduced)


def _trim(reduced: DecoderPass, layers: range, survivors: Packing) -> None:
    """Let the caches of ``layers`` forget what is not among the ``survivors`` of this chunk."""
    if reduced.cache is None:
        return
    holders = reduced.masks.holders
    for i in layers:
        if holders[i] != i:
            continue
        held, past = reduced.cached.get(i, reduced.packings.at(i)), reduced.masks.past[i]
        if sum(held.counts) <= sum(survivors.counts):
            continue  # survivors of a later place are among those of an earlier one
        slots = held.slot.gather(1, survivors.order) + past
        old = torch.arange(past, device=slots.device).expand(slots.shape[0], past)
        keep_columns(reduced.cache, i, torch.cat([old, slots], dim=1))
        for reader in (layer for layer, holder in enumerate(holders) if holder == i):
            reduced.masks.trimmed(reader, survivors)
            reduced.cached[reader] = survivors


def _count_cache_as_position(reduced: DecoderPass) -> None:
    """From here on a new token's position id in a layer is the number of real tokens that layer's cache holds."""
    following = reduced.positions.flat[:, -1] + 1
    shifts: dict[int, Tensor] = {}
    for i, real in enumerate(reduced.masks.real):
        length = int(physical_length(reduced.cache, i))
        held = following.new_full(following.shape, length) if real is None else real.sum(dim=1)
        key = length if real is None else id(real)
        reduced.positions.continue_at(i, shifts.setdefault(key, following - held))
