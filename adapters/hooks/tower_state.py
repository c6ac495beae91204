"""The rows of one pass through a vision tower: what was merged, where each row sits, how wide every block was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.hooks.rows_restored import made_of, restored
from tokenreduce.adapters.hooks.unit_rows import UnitRows, as_given, in_batch, parted_frames, rows_of
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.layout import Layout
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import Reduction

UNSEEN = -1e4  # added to the logits of an absent row: none is left of it after the softmax, in any precision


class WayBack(NamedTuple):
    """How units of the unmerged tower come back from rows: what a ``TowerState`` calls so."""

    assign: Tensor
    made: Tensor | None
    frames: int
    fronts: int


@dataclass
class TowerState:
    """The tokens of one pass through the tower, in units: one row each, or the patches that become one token.

    A tower that packs its pictures is a batch of one; its images are the segments of that sequence, one after the other.

    Attributes:
        size: (B, N) float, units of the unmerged tower each current one stands for; ``counted``, how many times attention counts
            it where a method says so, else the same.
        assign: (B, N0) long, current unit of each unit of the unmerged tower.
        source: (B, N) long, unit of the unmerged tower each current one sits at.
        layouts: where the units of each image are.
        own: of each image, the rows of the unmerged tower that are its own, ascending; None: all. The others fill up a batch.
        numbers: units there are of each image; ``size`` is as wide as the most, and rows beyond an image's own are absent.
        arrived: ``numbers`` before some were left out in front of the first block; None: none were. ``began``, those in front of
            whatever happens in that block.
        units: how rows make units.
        made: (B, N0, N) float, how each unit of the unmerged tower is made again of the current ones; None: a copy of one.
        frames: images that are one sequence, and then one image of the others: their prefix rows come first; ``fronts``, of how
            many of them there are prefix rows of their own, fewer where some were averaged.
        entered: per block, the way back in front of its attention; ``went_on``, behind it; ``came`` and ``behind``, ``numbers``
            there.
        history: what happened; ``left``, ``numbers`` after each time; ``fronts_left``, ``fronts``.
        around: per block whose attention rows merge around, of each sequence, rows that it projects and rows that attend.
        moved: whether rows are others than those of the unmerged tower, or in another order.
    """

    size: Tensor
    assign: Tensor
    source: Tensor
    layouts: list[Layout]
    numbers: list[int]
    own: list[list[int]] | None = None
    arrived: list[int] | None = None
    began: list[int] = field(default_factory=list)
    units: UnitRows = field(default_factory=UnitRows)
    made: Tensor | None = None
    frames: int = 1
    fronts: int = 1
    entered: list[WayBack] = field(default_factory=list)
    went_on: list[WayBack] = field(default_factory=list)
    came: list[list[int]] = field(default_factory=list)
    behind: list[list[int]] = field(default_factory=list)
    history: list[StageTrace] = field(default_factory=list)
    left: list[list[int]] = field(default_factory=list)
    fronts_left: list[int] = field(default_factory=list)
    around: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    touched: bool = False
    moved: bool = False
    gone: bool = False  # whether a row may be in none by now
    alike: bool = True  # whether all images have equally many rows
    own_counts: Tensor | None = None

    @classmethod
    def start(cls, x: Tensor, layouts: list[Layout], units: UnitRows | None = None) -> TowerState:
        units = units or UnitRows()
        n = units.prefix + (x.shape[1] - units.prefix) // units.patches
        rows = torch.arange(n, device=x.device).expand(len(x), n)
        ones = torch.ones(len(x), n, device=x.device)
        return cls(ones, assign=rows, source=rows, layouts=layouts, numbers=[n] * len(x), units=units)

    def apply(self, reduction: Reduction, layer: int, method: str, numbers: list[int] | None = None) -> None:
        """What becomes of the rows by ``reduction`` of a method, and, where they differ, of the ``numbers`` of the images."""
        self.become(reduction, numbers)
        self.history.append(
            StageTrace("encoder", layer, method, self.assign, self.source, self.source, None, reduction.role_names)
        )
        self.left.append(self.numbers)
        self.fronts_left.append(self.fronts)

    def become(self, reduction: Reduction, numbers: list[int] | None = None) -> None:
        """The same, with nothing to be told of it."""
        k, joined, there = reduction.num_kept, reduction.assign, 1.0 if reduction.covers else reduction.assign >= 0
        joined = joined if reduction.covers else joined.clamp_min(0)
        empty = torch.zeros(len(joined), k, device=joined.device)
        own, self.own_counts = self.own_counts, reduction.counts
        if own is not None and reduction.counts is None:
            self.own_counts = empty.scatter_add(1, joined, own * there)
        self.size = empty.scatter_add(1, joined, self.size * there)
        before = self.assign
        self.made = made_of(self.made, before, reduction)
        self.assign = reduction.assign.gather(1, before.clamp_min(0) if self.gone else before)
        if self.gone:
            self.assign = self.assign.masked_fill(before < 0, -1)
        self.gone = self.gone or not reduction.covers
        self.source = self.source.gather(1, reduction.source)
        self.numbers = [k] * len(self.size) if numbers is None else numbers
        self.touched = self.moved = True

    def reorder(self, order: Tensor) -> None:
        """Put units in the ``order`` (B, N); of each image they stay together."""
        self.size, self.source = self.size.gather(1, order), self.source.gather(1, order)
        self.own_counts = None if self.own_counts is None else self.own_counts.gather(1, order)
        place = order.argsort(dim=1).gather(1, self.assign.clamp_min(0))
        self.assign = torch.where(self.assign < 0, self.assign, place)

    @property
    def counted(self) -> Tensor:
        return self.size if self.own_counts is None else self.own_counts

    @property
    def prefix(self) -> int:
        """Rows in front of the patches of each sequence."""
        return self.units.prefix * self.fronts

    @property
    def whole_prefix(self) -> int:
        """The same at full width."""
        return self.units.prefix * self.frames

    @property
    def full(self) -> tuple[int, int]:
        """Batch and rows of the unmerged tower."""
        return len(self.assign) * self.frames, self.units.count(self.assign.shape[1] // self.frames)

    @property
    def rows(self) -> Tensor:
        """(B, n) long, row of the unmerged tower each current one sits at."""
        return self.units.standing(self.source)

    def went(self, block: int | None = None) -> Tensor:
        """(B, n0) long, row that each row of the unmerged tower is in where ``block`` is entered; None: at the end."""
        return self.units.of_rows(self.assign if block is None else self.entered[block].assign)

    @property
    def back(self) -> WayBack:
        return WayBack(self.assign, self.made, self.frames, self.fronts)

    def whole(self, rows: Tensor, back: WayBack | None = None) -> Tensor:
        """``rows`` (B, n, D), from where the way ``back`` leads, by default from the end, at full width (B, n0, D)."""
        assign, made, frames, _ = back or self.back
        wide = rows_of(rows, self.units.of_rows(assign)) if made is None else restored(made, self.units, rows)
        return wide if frames == 1 else parted_frames(wide, frames, self.units.prefix)

    def select(self, entering: Tensor, prefix: int, *, in_place: bool) -> None:
        """Leave patches out in front of the first block: all but those ``entering``, (B, n) bool, and the ``prefix`` rows.

        At full width a row that did not enter repeats the one before it that did. ``in_place``: where an image enters whole,
        the rows of the others stay where they are, so that rows of full width are always those of all patches.
        """
        entering = F.pad(entering, (prefix, 0), value=True)
        whole, device = entering.shape[1], entering.device
        numbers = entering.sum(dim=1)
        self.arrived, self.numbers = self.numbers, numbers.tolist()
        width, rows = max(self.numbers), torch.arange(whole, device=device).expand_as(entering)
        if width == whole and in_place:
            self.source, there = rows, entering
            self.assign = torch.where(entering, rows, 0).cummax(dim=1).values
        else:
            there = rows[:, :width] < numbers[:, None]
            order = entering.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :width]
            self.source = torch.where(there, order, order[:, :1])  # absent ones sit anywhere
            self.assign = (entering.cumsum(dim=1) - 1).clamp_min(0)
        self.size = there.to(self.size.dtype)
        self.touched = self.moved = True
        self.alike = min(self.numbers) == width

    @property
    def unmerged(self) -> list[int]:
        """Rows of each image that blocks would work on if nothing merged or left."""
        return self.arrived or [self.units.count(n) for n in self.began]

    def counts(self, depth: int) -> list[tuple[list[int], list[int]]]:
        """Rows of each image that attention and MLP of each block work on."""
        came, behind = ([[self.units.count(n) for n in own] for own in all_] for all_ in (self.came, self.behind))
        return list(zip(came[:depth], behind, strict=False))

    def full_width(self, states: Any, *, averaged: bool = False) -> Any:
        """Recorded hidden states (after 0, 1, 2, ... blocks; entries may be None) at full width.

        Args:
            averaged: every row of the unmerged tower is given the mean of all that its final row stands for, so that states
                of several blocks tell of the same groups; not where rows are made again, and every patch stands for itself.
        """
        ways, wide = [*self.entered[:1], *self.went_on], []
        for i, state in enumerate(states):
            back = ways[min(i, len(ways) - 1)]
            if state is not None:
                rows = in_batch(state)
                ordered = self.units.order is None or not 0 < i < len(ways) - 1
                if rows.shape[:2] != self.full or not ordered:
                    rows = self.whole(rows, back)
                if averaged and self.made is None and back.assign is not self.assign:
                    rows = self.averaged(rows)
                state = as_given(rows, state)
            wide.append(state)
        return tuple(wide)

    def widened(self, last: Tensor) -> Tensor:
        """What a tower that packs is left with, rows (n, D) or, where it joins them by itself, units (U, D), at full width."""
        units = len(last) == self.size.shape[1]
        return rows_of(last[None], self.assign if units else self.went())[0]

    def averaged(self, rows: Tensor) -> Tensor:
        """``rows`` (B, n0, D) at full width, each as the mean of all that its final row stands for."""
        units = self.units
        ordered = rows if units.order is None else rows[:, units.order]
        mean = units.parted(self.averaged_units(units.joined(ordered)))
        return mean if units.back is None else mean[:, units.back]

    def averaged_units(self, units: Tensor) -> Tensor:
        """The same of ``units`` (B, N0, C)."""
        return rows_of(group_mean(units, self.assign, self.size.shape[1]), self.assign)
