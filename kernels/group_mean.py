"""Size-weighted merging: groups of tokens become their weighted mean. The way back is ``compaction``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.shapes import fits


class GroupMean:
    """``group_mean`` over the groups of ``assign``, for several tensors: what a CPU looks up of the groups, it does once.

    ``covers``: whether every row is known to be in a group.
    """

    def __init__(self, assign: Tensor, k: int, weight: Tensor | None = None, *, covers: bool = False) -> None:
        self.assign = assign
        self.k = k
        self.weight = weight
        self.covers = covers
        self._members: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """``features`` (B, N, D): (B, k, D)."""
        return _mean(features, self)

    @property
    def members(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of all images, group by group, the first of each group among them, and the share of each row in its."""
        if self._members is None:
            self._members = _members(self)
        return self._members


def group_mean(features: Tensor, assign: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Mean of ``features`` over the groups of ``assign``.

    Accumulates in float32; the kernel adds the members of a group in ascending order, without atomics.

    Args:
        features: (B, N, D), any float dtype.
        assign: (B, N) long, group of every token in [0, k), or -1 for none.
        k: groups, at least 1.
        weight: (B, N) relative weights within a group; None: equal ones.

    Returns:
        (B, k, D) in the dtype of ``features``; an empty group is zero.

    Errors: ``ValueError`` for shapes that do not fit each other.
    """
    return _mean(features, GroupMean(assign, k, weight))


@dispatch.operation
def _mean(features: Tensor, groups: GroupMean) -> Tensor:
    assign, k, weight = groups.assign, groups.k, groups.weight
    fits("group_mean", "assign", assign, *features.shape[:2])
    if weight is not None:
        fits("group_mean", "weight", weight, *features.shape[:2])
    fast = dispatch.kernel("group_mean", features, graph=True)
    if fast is not None:
        return fast.group_mean(features, assign, k, weight)
    batch = len(features)
    # bags of rows are summed without copying them
    member, start, share = groups.members
    rows = features.float().flatten(0, 1)
    mean = F.embedding_bag(member, rows, start, mode="sum", per_sample_weights=share)
    return mean[: batch * k].view(batch, k, -1).to(features.dtype)


def _members(groups: GroupMean) -> tuple[Tensor, Tensor, Tensor]:
    assign, weight, covers = groups.assign, groups.weight, groups.covers
    last = len(assign) * groups.k
    # all images in one list, one group more for what belongs to none
    group = assign
    if len(assign) > 1:
        group = assign + torch.arange(0, last, groups.k, device=assign.device)[:, None]
    if not covers:
        group = torch.where(assign >= 0, group, last)
    group, member = group.flatten().sort(stable=True)
    start = torch.searchsorted(group, torch.arange(last + (not covers), device=assign.device))
    if not covers and assign.device.type == "cpu" and not torch.compiler.is_compiling():
        members = int(start[-1])  # what belongs to none comes last and need not be read
        group, member = group[:members], member[:members]
    weight = torch.ones_like(assign, dtype=torch.float32) if weight is None else weight.float()
    share = weight.flatten().index_select(0, member)
    mass = share.new_zeros(last + 1).scatter_add_(0, group, share)
    mass = mass.clamp_min_(torch.finfo(torch.float32).tiny)
    return member, start, share / mass.index_select(0, group)
