"""Temporal similarity: what stays the same at each place of adjacent frames."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch

EPSILON = 1e-8  # as in torch's cosine similarity


@dispatch.operation
def temporal_similarity(x: Tensor) -> Tensor:
    """Cosine of the tokens at the same place of adjacent frames.

    Computed in float32, two frames at a time; a zero vector has cosine 0 with everything. Not differentiable.

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
    before = x[0].float()
    length = torch.linalg.vector_norm(before, dim=-1).clamp_min(EPSILON)
    product, found = torch.empty_like(before), []
    for frame in x[1:]:
        now = frame.float()
        now_length = torch.linalg.vector_norm(now, dim=-1).clamp_min(EPSILON)
        torch.mul(before, now, out=product)
        found.append(product.sum(dim=-1) / (length * now_length))
        before, length = now, now_length
    return torch.stack(found)
