"""Which columns of the decoder's input are still alive, and where they sit once the rest is taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from tokenreduce.groups import ImageGroup
from tokenreduce.kernels.rows import take_rows
from tokenreduce.uploading import uploaded


class Packing:
    """Rows of a (B, L) sequence with their living columns moved to the right, in order.

    Attributes:
        alive: (B, L) bool, columns that are real and kept.
        order: (B, W) long, column in each slot (padding slots hold some dead column).
        valid: (B, W) bool, slots that hold a living column; None when every slot does.
        slot: (B, L) long, slot of the last living column at or before each column, or else of the first one.
    """

    moved = True  # whether columns changed places

    def __init__(self, alive: Tensor, counts: list[int]) -> None:
        """``counts[b]`` is the number of living columns of row b, known on the host so that no device is waited for."""
        length, width = alive.shape[1], max(1, *counts)  # one slot where nothing is left
        self.alive = alive
        self.counts = counts
        self.width = width
        # uint8: sorting booleans is not available on every backend
        self.order = alive.to(torch.uint8).argsort(dim=1, stable=True)[:, length - width :]
        self.valid = None if min(counts) == width else alive.gather(1, self.order)
        number = uploaded(counts, alive.device)[:, None]
        self.slot = ((alive.cumsum(dim=1) - 1).clamp_min(0) + (width - number)).clamp_max(width - 1)

    @classmethod
    def untouched(cls, real: Tensor, counts: list[int]) -> Packing:
        """The sequence as it came: every column in its place, padding included."""
        self = cls.__new__(cls)
        self.moved = False
        batch, length = real.shape
        self.alive, self.counts, self.width = real, counts, length
        self.order = torch.arange(length, device=real.device).expand(batch, length)
        self.valid = None if min(counts) == length else real
        self.slot = self.order
        return self

    def last_slot(self) -> Tensor | None:
        """(B,) slot of the last living column; None when that is the last slot of every row."""
        if self.valid is None:
            return None
        place = torch.arange(self.width, device=self.alive.device)
        return torch.where(self.valid, place, -1).amax(dim=1)

    def fill(self, hidden: Tensor) -> Tensor:
        """(B, W, D) back to (B, L, D): a dead column repeats the last living one before it."""
        return take_rows(hidden, self.slot)


def scatter(x: Tensor, index: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """``x`` (B, N, ...) with ``values`` (M, K, ...) written at rows ``rows`` (M,) and columns ``index`` (M, K)."""
    return x.index_put((rows[:, None].expand_as(index), index), values.to(x.dtype))


def write(x: Tensor, packing: Packing, groups: list[ImageGroup], what: Literal["features", "companions"]) -> Tensor:
    """``x`` (B, W, D) with what new or moved tokens of ``groups`` hold written to their slots."""
    for group in groups:
        held = getattr(group, what)
        if group.moved and held is not None:
            x = scatter(x, packing.slot[group.samples[:, None], group.seats], group.samples, held)
    return x


class LayerPackings:
    """The packing in force in each decoder layer; the layers between two shortenings share one.

    Attributes:
        by_first: by first layer of such a stretch; 0 is what the decoder is handed.
        visual_counts: likewise, how many visual columns are left in each row.
        alone: stretches of a single layer, which tokens pass by that are there again behind it.
    """

    def __init__(self, packing: Packing, visual_counts: list[int]) -> None:
        self.by_first = {0: packing}
        self.visual_counts = {0: visual_counts}
        self.alone: set[int] = set()

    def start(self, layer: int) -> int:
        """First layer of the stretch that ``layer`` belongs to."""
        return layer if layer in self.alone else self.start_behind(layer)

    def start_behind(self, layer: int) -> int:
        """First layer of the stretch to which belongs what leaves ``layer``."""
        return max(first for first in self.by_first if first <= layer and first not in self.alone)

    def behind(self, layer: int) -> Packing:
        """The packing of what leaves ``layer``."""
        return self.by_first[self.start_behind(layer)]

    def at(self, layer: int) -> Packing:
        return self.by_first[self.start(layer)]

    def repack(self, layer: int, old: list[ImageGroup], new: list[ImageGroup]) -> Packing:
        """Put the packing in force from ``layer`` on, after images went from ``old`` to ``new``."""
        before = self.at(layer)
        self.visual_counts[layer] = changed_counts(self.visual_counts[self.start(layer)], old, new)
        self.by_first[layer] = packing = repacked(before, old, new)
        return packing


def repacked(before: Packing, old: list[ImageGroup], new: list[ImageGroup]) -> Packing:
    """The packing after images went from ``old`` to ``new``."""
    alive = before.alive.clone()
    for groups, lives in ((old, False), (new, True)):
        for group in groups:
            alive[group.samples[:, None], group.seats] = lives
    return Packing(alive, changed_counts(before.counts, old, new))


def changed_counts(counts: list[int], old: list[ImageGroup], new: list[ImageGroup]) -> list[int]:
    """``counts`` of tokens by sample after images went from ``old`` to ``new``."""
    changed = list(counts)
    for sign, groups in ((-1, old), (1, new)):
        for group in groups:
            for sample in group.decoder_rows:
                changed[sample] += sign * group.num_tokens
    return changed


def carried(packing: Packing, groups: list[ImageGroup]) -> Tensor:
    """(B, W) column whose position each slot of ``packing`` carries: its own, or that of the token now sitting there."""
    batch, length = packing.alive.shape
    columns = torch.arange(length, device=packing.alive.device).expand(batch, length)
    for group in groups:
        columns = scatter(columns, group.seats, group.samples, group.place)
    return columns.gather(1, packing.order)


def real_columns(
    mask: Any, on_host: Callable[[Tensor], Tensor], embeds: Tensor, past: int, *, continues: bool
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Which columns of this chunk are real (B, L), which of the ``past`` ones were (None: all), and how many are.

    ``mask`` is what the decoder was given: None, (B, past + L), or masks already made for a cache of fixed size;
    ``on_host`` gives what was read of it ahead.
    """
    batch, length = embeds.shape[:2]
    everything = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
    if mask is None or length == 1:
        return everything, None, [length] * batch
    if isinstance(mask, dict):
        mask = next((m for m in mask.values() if m is not None), None)
    if mask is None or not isinstance(mask, Tensor):
        return everything, None, [length] * batch
    if mask.ndim == 4:
        if continues:
            return everything, None, [length] * batch
        square = mask[:, 0, :length, past : past + length].diagonal(dim1=-2, dim2=-1)
        real = (square if square.dtype == torch.bool else square >= 0).expand(batch, length)
        return real, None, real.sum(dim=1).tolist()
    known = on_host(mask).bool()
    counts = known[:, -length:].sum(dim=1).tolist()
    whole = continues or past == 0 or bool(known[:, :past].all())
    mask = mask.to(embeds.device, non_blocking=True).bool()
    return mask[:, -length:], None if whole else mask[:, :past], counts
