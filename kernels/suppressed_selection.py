"""Greedy selection in which each token taken lowers the scores of those that resemble it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.cosine_rows import CosineRows


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
    taken, value = zip(*(_suppressed(rows, own, k, gamma, least) for rows, own in zip(x, score.detach().float())))
    return torch.stack(taken), torch.stack(value)


def _suppressed(x: Tensor, score: Tensor, k: int, gamma: float, least: float) -> tuple[Tensor, Tensor]:
    """(k,) each, for one image (N, C) and its scores (N,)."""
    cosines, left = CosineRows(x), score.clone()
    gone = torch.zeros_like(left)  # -inf for tokens taken
    taken: list[int] = []
    values: list[float] = []
    while True:
        alive = left + gone
        best = int(alive.argmax())
        taken.append(best)
        values.append(float(left[best]))
        if len(taken) == k:
            return torch.tensor(taken, device=x.device), left.new_tensor(values)
        gone[best] = -torch.inf
        if values[-1] == 0:  # as all that follow, where scores stop at 0: nothing is lowered
            continue
        likeness = (1 - cosines.row(best, alive)).clamp_min_(0).square_().mul_(-gamma).exp_()
        left = (left - likeness * values[-1]).clamp_min(least)
