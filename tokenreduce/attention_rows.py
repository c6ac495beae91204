"""What one attention runs on where rows merge in front of it and are copied back behind it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import GroupMean
from tokenreduce.kernels.rows import take_rows


@dataclass(frozen=True)
class AttentionRows:
    """The rows of one attention: K means, then P tokens that stand by themselves; and which row each place is given back.

    Attributes:
        assign: (B, N) long, the mean from 0 to K - 1 that each token is in; -1: in none.
        means: K, each of at least one token.
        alone: (B, P) long, tokens that are rows of their own behind the means, also where one is in a mean, too.
        back: (B, N) long, the row from 0 to K + P - 1 whose result each token is given.
    """

    assign: Tensor
    means: int
    alone: Tensor
    back: Tensor

    @property
    def count(self) -> int:
        """Rows that the attention runs on."""
        return self.means + self.alone.shape[1]

    @cached_property
    def _mean(self) -> GroupMean:
        return GroupMean(self.assign, self.means)

    def merge(self, x: Tensor) -> Tensor:
        """The rows (B, K + P, D) of tokens ``x`` (B, N, D)."""
        return torch.cat([self._mean(x), take_rows(x, self.alone)], dim=1)

    def copy_back(self, rows: Tensor) -> Tensor:
        """(B, N, D) of ``rows`` (B, K + P, D)."""
        return take_rows(rows, self.back)

    def check(self, batch: int, n: int) -> AttentionRows:
        """Raise if this does not fit ``batch`` sequences of ``n`` rows; returns it."""
        for name, shape in {"assign": (batch, n), "alone": (batch, self.alone.shape[-1]), "back": (batch, n)}.items():
            x = getattr(self, name)
            if tuple(x.shape) != shape or x.dtype != torch.long:
                raise ValueError(
                    f"AttentionRows.{name} is {tuple(x.shape)} of {x.dtype}; allowed: {shape} of torch.int64"
                )
        if self.means < 1:
            raise ValueError(f"AttentionRows.means={self.means}; allowed: an int >= 1")
        return self
