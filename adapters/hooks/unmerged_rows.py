"""Merged tokens at all places they stand for: which columns of a sequence hold the same row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import scatter
from tokenreduce.groups import ImageGroup
from tokenreduce.kernels.group_mean import GroupMean
from tokenreduce.kernels.rows import take_rows


@dataclass(frozen=True)
class UnmergedRows:
    """The rows behind the columns of a sequence: equal columns are one row.

    Attributes:
        row: (B, L) long, the row that stands in each column; ``first``, (B, W) long, a column of each row, ascending.
        counts: rows of each sequence; those beyond repeat some column and stand nowhere.
        mean: what makes the mean (B, W, D) over the columns of each row.
    """

    row: Tensor
    first: Tensor
    counts: list[int]
    mean: GroupMean

    @classmethod
    def of(cls, groups: list[ImageGroup], real: Tensor) -> UnmergedRows:
        """Those of a sequence with ``real`` (B, L) columns, in which every token of ``groups`` stands for its row.

        Every other column is a row of its own.
        """
        batch, length = real.shape
        columns = torch.arange(length, device=real.device).expand(batch, length)
        seat, counts = columns, [length] * batch
        for group in groups:
            seat = scatter(seat, group.columns, group.samples, group.seats.gather(1, group.assign))
            for sample in group.decoder_rows:
                counts[sample] -= group.columns.shape[1] - group.num_tokens
        stands = seat == columns
        row = (stands.cumsum(dim=1) - 1).gather(1, seat)
        first = stands.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
        return cls(row, first, counts, GroupMean(row, max(counts)))

    def narrow(self, x: Tensor) -> Tensor:
        """``x`` (B, L, ...), equal in all columns of a row, as (B, W, ...)."""
        return take_rows(x, self.first)

    def spread(self, x: Tensor) -> Tensor:
        """``x`` (B, W, ...) in every column of its row, (B, L, ...)."""
        return take_rows(x, self.row)
