"""Tokens whose attention stands out, and what they absorb: mathematics of PruMerge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.rows import take_rows, unit_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.reduction import DROPPED
from tokenreduce.uploading import uploaded


def by_outliers(score: Tensor, plus: bool = False, parity: str = "paper") -> tuple[Tensor, Tensor]:
    """(B, N) tokens in the order of the release, and (B,) how many of them are kept: those whose ``score`` (B, N) lies
    more than 1.5 interquartile ranges above the third quartile, at least one; with ``plus`` also an even grid."""
    n = score.shape[1]
    low, high = score.float().quantile(uploaded([0.25, 0.75], score.device), dim=1)
    count = (score > (high + 1.5 * (high - low))[:, None]).sum(dim=1).clamp_min(1)
    ratio = count.double() / n
    if parity == "release":
        count = (n * ratio).long()
    if not plus:
        return top_k(score, n), count
    step = ((1 / ratio).long() // 3).clamp_min(1)
    index = torch.arange(n, device=score.device)
    return _in_turn(score, count, (index % step[:, None] == 0) & (index < n - 1))


def by_count(score: Tensor, k: int, plus: bool = False) -> tuple[Tensor, Tensor]:
    """The same for ``k`` tokens: the most attended; with ``plus`` at most half of k + 1 outliers, then an even grid, and the
    most attended others in place of what is both."""
    batch, n = score.shape
    count = torch.full((batch,), k, device=score.device)
    if not plus:
        return top_k(score, n), count
    outliers = by_outliers(score)[1].clamp_max((k + 1) // 2)
    cells = (k - outliers)[:, None]
    index = torch.arange(n, device=score.device)
    near = (2 * cells * index + n) // (2 * n)
    grid = torch.zeros_like(score, dtype=torch.bool)
    for i in (near, near - 1):
        grid |= (i >= 0) & (i < cells) & ((2 * i + 1) * n // (2 * cells).clamp_min(1) == index)
    return _in_turn(score, outliers, grid)[0], count


def _in_turn(score: Tensor, first: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The ``first`` (B,) tokens by ``score``, then those of the ``grid`` (B, N) as they lie, then the others by score."""
    rank = top_k(score, score.shape[1]).argsort(dim=1)
    ahead = rank < first[:, None]
    index = torch.arange(score.shape[1], device=score.device)
    turn = torch.where(ahead, 0, torch.where(grid, 1, 2)) * score.shape[1] + torch.where(grid & ~ahead, index, rank)
    return turn.argsort(dim=1), first + (grid & ~ahead).sum(dim=1)


class Absorbed(NamedTuple):
    """Rows (B, K, C), the token (B, K) that each sits at, -1 for the one that sums up, which of them exist, and (B, N) the
    row that each token is in, or most of it."""

    rows: Tensor
    source: Tensor
    valid: Tensor
    assign: Tensor


def absorb(
    score: Tensor,
    keys: Tensor,
    x: Tensor,
    order: Tensor,
    count: Tensor,
    most: int,
    neighbours: int = 32,
    normalise: bool = False,
) -> Absorbed:
    """Of ``x`` (B, N, C) the rows of the first ``count`` (B,) tokens of ``order`` (B, N), each with its ``neighbours`` of most
    similar ``keys`` added by ``score`` (B, N), and behind them the sum of all others by score. A count of 0 gives one token
    and no sum. ``most`` is the highest count.
    """
    n = score.shape[1]
    width = max(most, 1)
    centre, weight, rows = order[:, :width], score.float(), x.float()
    exists = torch.arange(width, device=x.device) < count.clamp_min(1)[:, None]
    unit = unit_rows(keys)
    near = take_rows(unit, centre) @ unit.mT
    near = near.scatter(2, centre[..., None], -torch.inf)
    top = near.sort(dim=2, descending=True, stable=True).indices[..., : min(neighbours, n - 1)]
    share = torch.zeros_like(near).scatter(2, top, weight[:, None].expand_as(near).gather(2, top))
    joined = share > 0
    share = share.scatter(2, centre[..., None], 1.0)
    made = share @ rows
    kept = torch.zeros_like(weight).scatter_add(1, centre, exists.float()) > 0
    rest = weight.masked_fill(kept, 0)
    extra = rest[:, None] @ rows
    if normalise:
        made = made / share.sum(dim=2, keepdim=True)
        extra = extra / rest.sum(dim=1)[:, None, None].clamp_min(torch.finfo(torch.float32).tiny)
    place = torch.arange(width, device=x.device).expand_as(centre)
    likeness = near.masked_fill(~(joined & exists[..., None]), -torch.inf).max(dim=1)
    assign = torch.where(likeness.values > -torch.inf, likeness.indices, width)
    own = torch.zeros_like(assign).scatter(1, centre.where(exists, centre[:, :1]), place.where(exists, 0))
    assign = torch.where(kept, own, assign)
    summed = (count > 0)[:, None]
    assign = torch.where((assign == width) & ~summed, DROPPED, assign)
    valid = torch.cat([exists, summed], dim=1)
    source = torch.cat([centre.masked_fill(~exists, 0), torch.full_like(centre[:, :1], DROPPED)], dim=1)
    return Absorbed(torch.cat([made, extra], dim=1).to(x.dtype), source, valid, assign)
