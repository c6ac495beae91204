"""Greedy selection in which each token taken lowers the scores of those that resemble it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import unit_rows

#: tokens up to which the products of all pairs are made at once
TABLE = 1024


@dispatch.operation
def suppressed_selection(
    x: Tensor, score: Tensor, k: int, *, gamma: float = 20.0, least: float = -torch.inf
) -> tuple[Tensor, Tensor]:
    """``k`` tokens by ``score``, where taking token i lowers every score j by S_i exp(-gamma (1 - cos(x_i, x_j))^2).

    No token is taken twice; of equal scores the lowest index wins. Computed in float32 whatever the dtype.

    Args:
        x: (B, N, C), any float dtype; a zero row resembles nothing but itself.
        score: (B, N) float.
        k: tokens to take, 1 to N.
        gamma: at least 0.
        least: scores do not fall below this.

    Returns:
        (B, k) long, in the order taken; (B, k) float32, the score each had then.

    Errors: ``ValueError`` for k or the shape of ``score`` out of range.
    """
    batch, n, _ = x.shape
    if not 1 <= k <= n:
        raise ValueError(f"k={k} of {n} tokens; allowed: 1 to {n}")
    if score.shape != (batch, n):
        raise ValueError(f"score has shape {tuple(score.shape)}; allowed: {(batch, n)}, one per token")
    unit = unit_rows(x)
    table = _likeness(unit @ unit.mT, gamma) if n <= TABLE else None
    left = score.detach().float().clone()
    gone = torch.zeros_like(left, dtype=torch.bool)
    taken, value = left.new_empty(batch, k, dtype=torch.long), left.new_empty(batch, k)
    for step in range(k):
        best, at = left.masked_fill(gone, -torch.inf).max(dim=1, keepdim=True)
        taken[:, step], value[:, step] = at[:, 0], best[:, 0]
        gone.scatter_(1, at, True)
        if table is None:
            row = _likeness((unit @ unit.gather(1, at[..., None].expand(-1, 1, unit.shape[2])).mT)[..., 0], gamma)
        else:
            row = table.gather(1, at[..., None].expand(-1, 1, n))[:, 0]
        left = (left - row * best).clamp_min(least)
    return taken, value


def _likeness(cosine: Tensor, gamma: float) -> Tensor:
    return (1 - cosine).clamp_min_(0).square_().mul_(-gamma).exp_()
