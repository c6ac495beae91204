"""Where to cut a video into segments, and what is ranked or shared within each of them, on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.rows import unit_rows


def neighbour_cosines(x: Tensor) -> Tensor:
    """(T - 1,) float32, cosine of neighbouring rows of ``x`` (T, C)."""
    unit = unit_rows(x[None])[0]
    return (unit[1:] * unit[:-1]).sum(dim=1)


def lowest(values: Tensor, count: Tensor | int) -> Tensor:
    """(N,) bool, the ``count`` lowest of ``values`` (N,); ties: the first."""
    return values.sort(stable=True).indices.argsort() < count


def segments(cut: Tensor) -> Tensor:
    """(T,) long, the segment of each frame; ``cut`` (T - 1,) bool: a segment ends after the frame."""
    return F.pad(cut.long().cumsum(dim=0), (1, 0))


def rank_within(group: Tensor, key: Tensor) -> Tensor:
    """(N,) long, place of each when those of its ``group`` (N,) are sorted by falling ``key`` (N,); ties: the first."""
    order = key.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    first = torch.bincount(group).cumsum(dim=0).roll(1)
    first[0] = 0
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[group[order]]
    return rank


def shared_within(group: Tensor, size: Tensor, total: Tensor) -> Tensor:
    """(N,) long: ``total`` (G,) of each group shared among its members in proportion to ``size`` (N,), by largest remainder
    (ties: the first); all of ``size`` where there is no more."""
    whole = torch.zeros_like(total).index_add_(0, group, size)
    product, parts = size * torch.minimum(total, whole)[group], whole[group].clamp_min(1)
    count = product // parts
    missing = torch.minimum(total, whole).index_add(0, group, -count)
    return count + (rank_within(group, product % parts) < missing[group])
