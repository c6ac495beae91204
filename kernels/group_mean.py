"""Size-weighted merging: groups of tokens become their weighted mean. The way back is ``compaction``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.shapes import fits


@dispatch.operation
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
    fits("group_mean", "assign", assign, *features.shape[:2])
    if weight is not None:
        fits("group_mean", "weight", weight, *features.shape[:2])
    fast = dispatch.kernel("group_mean", features, graph=True)
    if fast is not None:
        return fast.group_mean(features, assign, k, weight)
    batch = len(features)
    # all images in one list, one group more for what belongs to none; bags of rows are summed without copying them
    last = batch * k
    first = torch.arange(0, last, k, device=assign.device)[:, None]
    group, member = torch.where(assign >= 0, assign + first, last).flatten().sort(stable=True)
    if assign.device.type == "cpu" and not torch.compiler.is_compiling():
        members = int((assign >= 0).sum())  # what belongs to none comes last and need not be read
        group, member = group[:members], member[:members]
    start = torch.searchsorted(group, torch.arange(last + 1, device=assign.device))
    weight = torch.ones_like(assign, dtype=torch.float32) if weight is None else weight.float()
    share = weight.flatten()[member]
    mass = share.new_zeros(last + 1).scatter_add_(0, group, share)
    share = share / mass.clamp_min(torch.finfo(torch.float32).tiny)[group]
    rows = features.float().flatten(0, 1)
    mean = F.embedding_bag(member, rows, start, mode="sum", per_sample_weights=share)
    return mean[:last].view(batch, k, -1).to(features.dtype)
