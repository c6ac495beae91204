"""Window similarity: how alike the tokens of every small window of a grid are, without the Gram matrix of a window."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch

EPSILON = 1e-12


@dispatch.operation
def window_similarity(x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Mean cosine of all pairs of different tokens in each of the disjoint ``window`` x ``window`` windows of a grid.

    With unit vectors u, the sum over i != j of <u_i, u_j> is |sum u|^2 - sum |u|^2: one pass over the tokens, w^2 * C
    multiply-adds per window instead of w^4 * C. Computed in float32 whatever the dtype; a zero vector has cosine 0 with
    everything, and windows of equal content get bit-equal values. Not differentiable.

    Args:
        x: (B, N, C), tokens of a complete ``height`` x ``width`` grid in raster order.
        window: side of a window, at least 2; divides ``height`` and ``width``.

    Returns:
        (B, N / window^2) float32 in [-1, 1] up to rounding, windows in raster order.

    Errors: ``ValueError`` when the grid does not hold N tokens or is not made of whole windows.
    """
    batch, n, channels = x.shape
    if n != height * width or window < 2 or height % window or width % window:
        raise ValueError(
            f"{n} tokens in a {height}x{width} grid cannot be cut into {window}x{window} windows; allowed: N = height * "
            "width, a window of at least 2 that divides height and width"
        )
    unit = F.normalize(x.detach().float(), dim=-1, eps=EPSILON)
    tiles = unit.reshape(batch, height // window, window, width // window, window, channels)
    total = tiles.sum(dim=(2, 4)).square().sum(dim=-1)
    own = tiles.square().sum(dim=-1).sum(dim=(2, 4))
    cells = window * window
    return ((total - own) / (cells * (cells - 1))).flatten(1)
