"""Pairs that merge because they are alike enough, as many as there are in each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.bipartite_matching import ELSEWHERE
from tokenreduce.matching import best_pairs, halves
from tokenreduce.reduction import Reduction

Path = Literal["instance", "batch"]  # of DyMU's release: an image by itself, or one of several


class Candidates(NamedTuple):
    """The rows of A, each with the row of B that it is most like, the most alike first; a row may stay behind.

    Attributes:
        leaving: (B, A) long, rows of A; ``joined``, (B, A), the row of B each of them would join.
        score: (B, A) float32, cosine of the two, falling.
        hubs: (B, M) long, the rows of B.
        prefix: rows in front of both.
    """

    leaving: Tensor
    joined: Tensor
    score: Tensor
    hubs: Tensor
    prefix: int

    def merge(self, counts: Tensor, weight: Tensor | None, path: Path) -> Reduction:
        """The ``counts`` (B,) best pairs of each image merged, as means by ``weight`` (B, N).

        Rows come out as the prefix, the lone rows of A, the rows of B. On the ``path`` of an instance the lone ones are the most
        alike first, where there is no prefix, and rows of an image in which nothing merges stay as they are; on that of a batch
        the lone ones are ascending. Waits for the device, which knows how many rows are left.
        """
        joins = torch.arange(self.leaving.shape[1], device=counts.device) < counts[:, None]
        lone, place = self.leaving, torch.arange(self.leaving.shape[1], device=counts.device).expand_as(joins)
        if self.prefix or path == "batch":
            lone, place = lone.sort(dim=1)
        first = torch.arange(self.prefix, device=counts.device).expand(len(counts), -1)
        order = torch.cat([first, lone, self.hubs], dim=1)
        if path == "instance":
            order = torch.where(counts[:, None] > 0, order, torch.arange(order.shape[1], device=counts.device))
        stays = torch.ones_like(order, dtype=torch.bool)
        stays[:, self.prefix : self.prefix + lone.shape[1]] = ~joins.gather(1, place)
        left = stays.sum(dim=1)
        k = int(left.max())
        rows = (stays.cumsum(dim=1) - 1).clamp_min(0)
        assign = torch.empty_like(order).scatter_(1, order, rows)
        assign.scatter_(1, self.leaving, assign.gather(1, torch.where(joins, self.joined, self.leaving)))
        source = order.gather(1, stays.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :k])
        valid = torch.arange(k, device=counts.device) < left[:, None]
        return Reduction.merge(assign, source, weight, valid=valid, covers=True)


def candidates(metric: Tensor, prefix: int, window: Tensor | None = None) -> Candidates | None:
    """The pairs among the rows of ``metric`` (B, N, C) behind ``prefix`` ones, split as in ``matching.match``; None: no two rows.

    Rows of other windows, ``window`` (B, N), are alike to none: where there are no others, the score is -inf.
    """
    batch, n, _ = metric.shape
    rows = torch.arange(n, device=metric.device).expand(batch, n)
    a, b = (rows[:, half] for half in halves(prefix))
    if not a.shape[1] or not b.shape[1]:
        return None
    pairs = best_pairs(metric, a, b, a.shape[1], window)
    score = pairs.score if window is None else pairs.score.masked_fill(pairs.score < ELSEWHERE / -2, -torch.inf)
    return Candidates(pairs.leaving, pairs.joined, score, b, prefix)


def best_of_all(scores: Sequence[Tensor], total: int) -> tuple[list[Tensor], float]:
    """The ``total`` highest of ``scores``, a (B, A) each, falling within every row; of equal ones the first.

    Returns:
        How many of each row they are, (B,) per tensor, and the highest of those that are not among them, at least 0; -inf, what
        never counts, and nothing left over are 0 as well.
    """
    flat = torch.cat([score.flatten() for score in scores])
    total = min(total, int((flat > -torch.inf).sum()))
    best, order = flat.sort(descending=True, stable=True)
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order[:total], True)
    parts = chosen.split([score.numel() for score in scores])
    counts = [part.view_as(score).sum(dim=1) for part, score in zip(parts, scores)]
    return counts, max(0.0, float(best[total])) if total < len(best) else 0.0


def above(score: Tensor, threshold: float) -> Tensor:
    """(B,) how many of each row of ``score`` (B, A) are greater than ``threshold``; compared in double precision."""
    return (score.double() > threshold).sum(dim=1)
