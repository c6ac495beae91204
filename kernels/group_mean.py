"""Size-weighted merging: groups of tokens become their weighted mean. The way back is ``compaction``."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch


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
    """
    fast = dispatch.kernel("group_mean", features, graph=True)
    if fast is not None:
        return fast.group_mean(features, assign, k, weight)
    batch, n, channels = features.shape
    weight = torch.ones_like(assign, dtype=torch.float32) if weight is None else weight.float()
    weight = weight * (assign >= 0)
    # one long list of rows: a scatter with whole rows as its unit is many times faster on a CPU than one per number
    group = (assign.clamp_min(0) + torch.arange(batch, device=assign.device)[:, None] * k).flatten()
    mass = weight.new_zeros(batch * k).scatter_add_(0, group, weight.flatten())
    share = weight.flatten() / mass.clamp_min(torch.finfo(torch.float32).tiny)[group]
    rows = (features.float() * share.view(batch, n, 1)).flatten(0, 1)
    total = rows.new_zeros(batch * k, channels).scatter_add_(0, group[:, None].expand(-1, channels), rows)
    return total.view(batch, k, channels).to(features.dtype)
