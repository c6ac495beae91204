"""Temporal similarity: what stays the same at each place of adjacent frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch

CHUNK = 8


def temporal_similarity(x: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Cosine of the tokens at the same place of adjacent frames.

    Computed in float32 in blocks of ``chunk`` frames; a zero vector has cosine 0 with everything. Not differentiable.

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
    with torch.autocast(x.device.type, enabled=False):
        found = []
        for start in range(0, len(x) - 1, chunk):
            frames = x[start : start + chunk + 1].float()
            found.append(F.cosine_similarity(frames[:-1], frames[1:], dim=-1))
    return torch.cat(found)
