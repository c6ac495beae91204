"""Temporal similarity: what stays the same at each place of adjacent frames."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import row_blocks

EPSILON = 1e-8  # as in torch's cosine similarity


@dispatch.operation
def temporal_similarity(x: Tensor) -> Tensor:
    """Cosine of the tokens at the same place of adjacent frames.

    Computed in float32, as many tokens at a time as stay in the cache; a zero vector has cosine 0 with everything. Not
    differentiable.

    Args:
        x: (T, N, C) tokens of T >= 1 frames.

    Returns:
        (T - 1, N) float32 in [-1, 1] up to rounding.
    """
    x = x.detach()
    if len(x) < 2:
        return torch.zeros(0, x.shape[1], device=x.device)
    fast = dispatch.kernel("temporal_similarity", x)
    if fast is not None:
        return fast.temporal_similarity(x)
    frames, n, channels = x.shape
    rows = x.flatten(0, 1)
    product, length = rows.new_empty(len(rows), dtype=torch.float32), rows.new_empty(len(rows), dtype=torch.float32)
    for block in row_blocks(len(rows), channels):
        own = rows[block].float()
        torch.linalg.vector_norm(own, dim=-1, out=length[block])
        following = rows[block.start + n : block.stop + n].float()
        product[block.start : block.start + len(following)] = (own[: len(following)] * following).sum(dim=-1)
    length = length.clamp_min_(EPSILON).view(frames, n)
    return product.view(frames, n)[:-1] / (length[:-1] * length[1:])
