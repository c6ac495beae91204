"""After a chunk of a prompt: where in the cache the pictures are from which later tokens choose what they read."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.cache_reading import CachedPictures, PictureEntries
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import physical_length
from tokenreduce.cost import StepsRead
from tokenreduce.groups import ImageGroup
from tokenreduce.pipeline import acts
from tokenreduce.reduction import Reduction


def cached_pictures(reduced: DecoderPass, groups: list[ImageGroup], steps: StepsRead) -> CachedPictures | None:
    """What decoding steps behind this pass will know; None where they read everything.

    ``groups``: the images of this chunk as they left the last decoder layer.
    """
    if reduced.pipeline.decodes is None:
        return None
    length = int(physical_length(reduced.cache, 0))
    if reduced.reading is not None:
        known = reduced.reading.known
        return replace(known, entries=reduced.reading.entries, length=length)
    layer = reduced.pipeline.decodes[1].layer
    assert layer is not None
    held = [entries.anew() for entries in reduced.held_before] + entries_of(
        reduced, reduced.as_entered(layer, groups), layer
    )
    past, layers = reduced.masks.past, range(reduced.depth)
    counts = [[past[i] + reduced.held(i)[row] for i in layers] for row in range(len(reduced.length_in))]
    if reduced.steps_read is not None and not reduced.groups:
        steps = reduced.steps_read  # text that continues a prompt leaves its report alone
    return CachedPictures(held, counts, length, length, steps) if held else None


def entries_of(reduced: DecoderPass, groups: list[ImageGroup], layer: int) -> list[PictureEntries]:
    """What the cache holds of the pictures ``groups`` of this chunk, as decoder ``layer`` worked on them."""
    assert reduced.pipeline.decodes is not None
    method, found = reduced.pipeline.decodes[0], list[PictureEntries]()
    trimmed = reduced.cached.get(layer)
    for group in (alone for picture in groups if acts(method, picture) for alone in _one_per_row(picture)):
        parts = [group]
        if trimmed is not None:
            kept = trimmed.alive[group.samples[:, None], group.seats]
            parts = group.apply(Reduction.where(kept), "cache", layer, method.name)
        for part in parts:
            empty = torch.empty(*part.seats.shape, 0, device=part.seats.device)
            asked = replace(part.settle(), features=empty, history=[])
            found.append(PictureEntries(asked, asked, *_slots(reduced, asked, layer)))
    return found


def _one_per_row(group: ImageGroup) -> list[ImageGroup]:
    """``group``, or what it falls into such that no part has two pictures of one decoder row."""
    seen, parts = dict[int, int](), list[list[int]]()
    for i, row in enumerate(group.decoder_rows):
        n = seen[row] = seen.get(row, -1) + 1
        if n == len(parts):
            parts.append([])
        parts[n].append(i)
    return [group] if len(parts) == 1 else [group.rows(index) for index in parts]


def _slots(reduced: DecoderPass, group: ImageGroup, layer: int) -> tuple[list[Tensor], list[bool]]:
    slots, whole, once = list[Tensor](), list[bool](), dict[tuple[int, int], Tensor]()
    rows, holders = group.samples[:, None], reduced.masks.holders
    reference = reduced.cached.get(holders[layer], reduced.packings.at(holders[layer]))
    for holder in holders:
        packing, past = reduced.cached.get(holder, reduced.packings.at(holder)), reduced.masks.past[holder]
        if (id(packing), past) not in once:
            slot = packing.slot[rows, group.seats] + past
            once[id(packing), past] = slot.masked_fill(~packing.alive[rows, group.seats], -1)
        slots.append(once[id(packing), past])
        whole.append(packing is reference)
    return slots, whole
