"""Energy of a token: its mean thresholded similarity to all tokens, without the table of similarities."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import row_blocks, unit_rows


@dispatch.operation
def energy_score(
    metric: Tensor,
    margin: float,
    alpha: float = 1.0,
    *,
    shape: Literal["elu", "gaussian"] = "elu",
    chunk: int | None = None,
) -> Tensor:
    """Mean over all tokens j, itself included, of f(cosine of i and j): high for members of large clusters.

    ``elu``: f(w) = w - margin above the margin, alpha (exp(w - margin) - 1) below. ``gaussian``: the density at 1 - w of
    a normal distribution of mean 0 and standard deviation sigma = 1 - margin. Normalised as in ``bipartite_matching``,
    computed in float32 whatever the dtype, also under autocast: neighbouring energies differ by 1e-5 or less. Loops
    over images and blocks of rows; memory is O(chunk * T). Not differentiable.

    Args:
        metric: (B, T, C), any float dtype.
        margin: m, at most 1; below 1 for ``gaussian``.
        alpha: depth of the ELU, in [0, inf); unused for ``gaussian``.
        shape: which f.
        chunk: rows per block; None: as many as stay in the cache.

    Returns:
        (B, T) float32.

    Errors: ``ValueError`` for a margin out of range or another ``shape``.
    """
    if shape not in ("elu", "gaussian"):
        raise ValueError(f"shape={shape!r}; allowed: 'elu', 'gaussian'")
    if not margin <= 1 or (shape == "gaussian" and margin == 1):
        raise ValueError(f"margin={margin!r}; allowed: at most 1, and below 1 with shape='gaussian'")
    fast = dispatch.kernel("energy_score", metric)
    if fast is not None:
        return fast.energy_score(metric, float(margin), float(alpha), gaussian=shape == "gaussian")
    batch, tokens, _ = metric.shape
    sigma = 1.0 - margin
    x = unit_rows(metric)
    total = x.new_empty(batch, tokens)
    for image in range(batch):
        columns = x[image].mT
        for here in row_blocks(tokens, tokens, chunk):
            cosine = x[image, here] @ columns
            if shape == "elu":
                # F.elu rounds by the place in memory, so equal rows could differ
                above = cosine.sub_(margin).clamp_min(0).sum(dim=-1)
                below = cosine.clamp_max_(0).exp_().sum(dim=-1)
                total[image, here] = below.sub_(tokens).mul_(alpha).add_(above)
            else:
                density = cosine.sub_(1).square_().mul_(-0.5 / sigma**2).exp_().sum(dim=-1)
                total[image, here] = density.div_(sigma * math.sqrt(2 * math.pi))
    return total / tokens
