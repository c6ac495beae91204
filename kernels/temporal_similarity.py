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

    Computed in float32, as many frames at a time as stay in the cache; a zero vector has cosine 0 with everything. Not
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
    found = []
    for block in row_blocks(len(x) - 1, x[0].numel(), least=4):
        frames = x[block.start : block.stop + 1].float()
        length = torch.linalg.vector_norm(frames, dim=-1).clamp_min(EPSILON)
        found.append((frames[:-1] * frames[1:]).sum(dim=-1) / (length[:-1] * length[1:]))
    return torch.cat(found)
