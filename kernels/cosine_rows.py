"""Rows of the table of cosines between the tokens of one image, made in blocks when a greedy choice first looks at them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels.rows import EPSILON

BLOCK = 32  # rows made together: hardly dearer than one, whose product waits for memory
SMALL = 2**20  # numbers that are kept in any case; more where the features themselves hold more
STRIP = 480  # rows of the whole table that are multiplied at once


class CosineRows:
    """Cosines of the tokens ``x`` (N, C), in float32 and without a graph; a zero row has cosine 0 with everything.

    Attributes:
        nonzero: (N,) bool, which tokens are not zero.
        most: rows that are kept together: those of a table no larger than ``x`` or 1,024 x 1,024.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach().float()
        self.most = max(BLOCK, max(SMALL, self.x.numel()) // len(x))
        norm = torch.linalg.vector_norm(self.x, dim=1)
        self.nonzero = norm > 0
        self._inverse = norm.clamp_min(EPSILON).reciprocal()
        self._kept: dict[int, Tensor] = {}
        self._unknown = self._inverse.new_zeros(len(x))  # -inf for rows that are kept

    def row(self, i: int, value: Tensor) -> Tensor:
        """(N,) cosines of token ``i``. Where they are not known yet, those of the tokens of highest ``value`` (N,) come with
        them: a greedy choice is likely to ask for these next.
        """
        if i not in self._kept:
            next_ones = (value + self._unknown).topk(min(BLOCK, len(value))).indices.tolist()
            self.make(torch.tensor([i, *(j for j in next_ones if j != i)][:BLOCK], device=self.x.device))
        return self._kept[i]

    def make(self, index: Tensor) -> Tensor:
        """(m, N) cosines of the tokens ``index`` (m,), which are kept."""
        table = (self.x @ self.x[index].mT).mul_(self._inverse[:, None]).mul_(self._inverse[index]).mT.contiguous()
        if len(self._kept) + len(index) > self.most:
            self._kept.clear()
            self._unknown.zero_()
        self._kept.update(zip(index.tolist(), table))
        self._unknown[index] = -torch.inf
        return table

    def make_all(self) -> Tensor:
        """(N, N), kept; each pair is multiplied once."""
        n = len(self.x)
        table = self.x.new_empty(n, n)
        for top in range(0, n, STRIP):
            here, below = slice(top, top + STRIP), slice(top + STRIP, None)
            table[here, top:] = self.x[here] @ self.x[top:].mT
            table[below, here] = table[here, below].mT
        table.mul_(self._inverse).mul_(self._inverse[:, None])
        self._kept = dict(enumerate(table))
        self._unknown.fill_(-torch.inf)
        return table
