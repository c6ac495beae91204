"""Rows of a tower and the units that they make: the patches which become one token, merged and kept together."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from tokenreduce.kernels.rows import take_rows


class UnitRows:
    """How rows (B, P + U p, C) of a tower make P + U units: P prefix rows, each a unit of its own, and U units of p patches.

    Where a tower keeps its patches in another order than units, ``order`` brings them into theirs, in which they stay until
    they are given back.

    Attributes:
        patches: p; ``prefix``, P.
        order: (P + U p,) long, row of each place in the order of units; None: rows are in that order.
    """

    def __init__(self, patches: int = 1, prefix: int = 0, order: Tensor | None = None) -> None:
        self.patches = patches
        self.prefix = prefix
        self.order = order

    @cached_property
    def back(self) -> Tensor | None:
        """(P + U p,) long, place of each row in the order of units."""
        return None if self.order is None else self.order.argsort()

    def count(self, units: int) -> int:
        """Rows of ``units``, prefix rows among them."""
        return self.prefix + (units - self.prefix) * self.patches

    def joined(self, rows: Tensor) -> Tensor:
        """``rows`` (B, n, C), in the order of units, with those of a unit side by side, (B, units, p C); a view where P is 0."""
        if self.patches == 1:
            return rows
        units = rows[:, self.prefix :].unflatten(1, (-1, self.patches)).flatten(2)
        if not self.prefix:
            return units
        return torch.cat([rows[:, : self.prefix].repeat(1, 1, self.patches), units], dim=1)

    def parted(self, units: Tensor) -> Tensor:
        """The rows of ``units`` as ``joined`` made them."""
        if self.patches == 1:
            return units
        rows = units[:, self.prefix :].unflatten(2, (self.patches, -1)).flatten(1, 2)
        if not self.prefix:
            return rows
        return torch.cat([units[:, : self.prefix, : rows.shape[2]], rows], dim=1)

    def mean(self, rows: Tensor) -> Tensor:
        """``rows`` (B, n, C), in the order of units, as the mean of each unit, (B, units, C)."""
        if self.patches == 1:
            return rows
        units = rows[:, self.prefix :].unflatten(1, (-1, self.patches)).mean(dim=2)
        return units if not self.prefix else torch.cat([rows[:, : self.prefix], units], dim=1)

    def spread(self, units: Tensor) -> Tensor:
        """Values ``units`` (B, units) for each of their rows (B, n)."""
        if self.patches == 1:
            return units
        rows = units[:, self.prefix :].repeat_interleave(self.patches, dim=1)
        return rows if not self.prefix else torch.cat([units[:, : self.prefix], rows], dim=1)

    def numbered(self, units: Tensor) -> Tensor:
        """The rows (B, n) of ``units`` (B, K) long, counted in the order of units; -1 for each of -1."""
        if self.patches == 1:
            return units
        first = (units[:, self.prefix :] - self.prefix) * self.patches + self.prefix
        rows = (first[..., None] + torch.arange(self.patches, device=units.device)).flatten(1)
        rows = rows.masked_fill(self.spread(units)[:, self.prefix :] < 0, -1)
        return rows if not self.prefix else torch.cat([units[:, : self.prefix], rows], dim=1)

    def standing(self, units: Tensor) -> Tensor:
        """The rows (B, n) of ``units`` (B, K) long as the tower counts them before its first block."""
        rows = self.numbered(units)
        return rows if self.order is None else self.order[rows.clamp_min(0)]

    def of_rows(self, assign: Tensor) -> Tensor:
        """Where each row (B, n0) of the unmerged tower went, as it counts them, when units went to ``assign`` (B, units)."""
        rows = self.numbered(assign)
        return rows if self.back is None else rows[:, self.back]


def by_squares(height: int, width: int, side: int, prefix: int, device: torch.device) -> Tensor:
    """``UnitRows.order`` of a grid of patches in raster order, whose squares of ``side`` x ``side`` are units, in raster order.

    Errors: ``ValueError`` for a grid that squares do not tile.
    """
    if height % side or width % side:
        raise ValueError(
            f"an image of {height} x {width} patches is not tiled by the {side} x {side} patches of a token, so patches at its "
            "border belong to none that could merge; merge behind the tower with at='projector'"
        )
    rows = torch.arange(height * width, device=device).view(height // side, side, width // side, side)
    order = rows.transpose(1, 2).flatten() + prefix
    return torch.cat([torch.arange(prefix, device=device), order])


def in_batch(x: Tensor) -> Tensor:
    """``x`` (B, N, D); a packed sequence (N, D) is a batch of one."""
    return x if x.ndim == 3 else x[None]


def as_given(x: Tensor, given: Tensor) -> Tensor:
    """``x`` (B, N, D) as a packed sequence (N, D), where ``given`` was one."""
    return x if given.ndim == 3 else x[0]


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of ``x`` (B, N, D); -1, a token that is gone, gives the first row."""
    return take_rows(x, index.clamp_min(0))


def joined(x: Tensor, frames: int, prefix: int) -> Tensor:
    """``frames`` neighbours of the batch ``x`` (B, n, ...) as one, (B / frames, n frames, ...): their ``prefix`` rows first."""
    own = x.unflatten(0, (-1, frames))
    return torch.cat([own[:, :, :prefix].flatten(1, 2), own[:, :, prefix:].flatten(1, 2)], dim=1)


def parted_frames(x: Tensor, frames: int, prefix: int) -> Tensor:
    """The batch that ``joined`` made into ``x``."""
    front = x[:, : frames * prefix].unflatten(1, (frames, prefix))
    return torch.cat([front, x[:, frames * prefix :].unflatten(1, (frames, -1))], dim=2).flatten(0, 1)
