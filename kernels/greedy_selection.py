"""Greedy selection: the most distant token next (max-min), or the one that adds most volume (DPP).

Both rules repeat two steps: take the token of highest gain, lower the gains of the others by the cosines with it. On a CPU
one product per token taken would wait for memory, and the table of all pairs is mostly never looked at: the reference makes
rows of it in blocks, of the tokens that are likely to be taken next (``cosine_rows``). Of images of few tokens, such as the
frames of a video, max-min makes all, and takes a token of each at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.cosine_rows import BLOCK, CosineRows
from tokenreduce.kernels.rows import EPSILON, row_blocks
from tokenreduce.kernels.shapes import fits

#: of the largest gain: what is left of a gain below this is rounding in float32
RESOLUTION = 1e-6
#: tokens of an image up to which images of a batch are chosen from together, and numbers of their tables at once
FEW, TOGETHER = 256, 2**22


@dispatch.operation
def max_min_selection(x: Tensor, k: int, *, weight: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """``k`` tokens whose smallest cosine distance among each other is large, in the order they were taken.

    First the token farthest from its nearest neighbour, then always the one farthest from all taken so far. No token is
    taken twice; of equal distances the lowest index wins. Distances 1 - cosine are float32 whatever the dtype, at least 0.

    Args:
        x: (B, N, C), any float dtype; a zero row has distance 1 to everything.
        k: tokens to take, 1 to N.
        weight: (B, N) float >= 0 by which the distances of a token are multiplied; None: 1.
        first: (B,) long, the tokens to begin with; None: as above.

    Returns:
        (B, k) long.

    Errors: ``ValueError`` for k or the shape of ``weight`` or ``first`` out of range.

    Source: the farthest-first traversal of Gonzalez, "Clustering to minimize the maximum intercluster distance",
        Theoretical Computer Science 38, 1985, in the form of Alvar et al., "DivPrune", CVPR 2025, arXiv 2503.02175.
    """
    batch, n, _ = x.shape
    _check(x, k)
    if weight is not None:
        fits("max_min_selection", "weight", weight, batch, n)
        weight = weight.detach().float()
    if first is not None:
        fits("max_min_selection", "first", first, batch)
    fast = dispatch.kernel("greedy_selection", x, limit=_limit(x))
    if fast is not None:
        return fast.max_min_selection(x, k, weight, first)
    if batch > 1 and n <= FEW:
        return torch.cat(
            [
                _together(x[own], None if weight is None else weight[own], None if first is None else first[own], k)
                for own in row_blocks(batch, n * n, max(1, TOGETHER // n**2))
            ]
        )
    weights = [None] * batch if weight is None else weight
    firsts = [None] * batch if first is None else first.tolist()
    return torch.stack([_max_min(*one, k) for one in zip(x, weights, firsts)])


@dispatch.operation
def dpp_selection(x: Tensor, relevance: Tensor, k: int) -> Tensor:
    """Greedy maximum a posteriori subset of the determinantal point process L = r_i cos(x_i, x_j) r_j, in the order taken.

    Every step takes the token that multiplies the determinant most: the largest Schur complement d_i, starting at r_i^2.
    Once no d exceeds 1e-6 of the first, everything left lies in the span of what was taken, and the most relevant tokens
    follow. No token is taken twice; of equal values the lowest index wins. Computed in float32 whatever the dtype.

    Args:
        x: (B, N, C), any float dtype.
        relevance: (B, N) float r >= 0; ones for diversity alone.
        k: tokens to take, 1 to N.

    Returns:
        (B, k) long.

    Errors: ``ValueError`` for k or the shape of ``relevance`` out of range.

    Source: Chen, Zhang and Zhou, "Fast greedy MAP inference for determinantal point process", NeurIPS 2018,
        arXiv 1709.05135; with this L, Zhang et al., "Beyond Attention or Similarity" (CDPruner), NeurIPS 2025,
        arXiv 2506.10967.
    """
    _check(x, k)
    fits("dpp_selection", "relevance", relevance, *x.shape[:2])
    fast = dispatch.kernel("greedy_selection", x, limit=_limit(x))
    if fast is not None:
        return fast.dpp_selection(x, relevance, k, RESOLUTION)
    relevance = relevance.detach().float()
    return torch.stack([_dpp(rows, r, k) for rows, r in zip(x, relevance)])


def _check(x: Tensor, k: int) -> None:
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k={k} of {x.shape[1]} tokens; allowed: 1 to {x.shape[1]}")


def _limit(x: Tensor) -> str | None:
    return None if x.shape[1] <= 65536 else f"{x.shape[1]} tokens are more than 65536"


def _max_min(x: Tensor, weight: Tensor | None, first: int | None, k: int) -> Tensor:
    """(k,) for one image (N, C)."""
    cosines = CosineRows(x)
    gain = cosines.x.new_full((len(x),), torch.inf) if weight is None else weight.clone()
    taken = [_most_isolated(cosines, weight) if first is None else first]
    away = torch.full_like(gain, torch.inf)
    while len(taken) < k:
        torch.minimum(away, _distance(cosines.row(taken[-1], gain)), out=away)
        away[taken[-1]] = -torch.inf
        gain = away if weight is None else torch.where(away < 0, away, away * weight)
        taken.append(int(gain.argmax()))
    return torch.tensor(taken, device=x.device)


def _together(x: Tensor, weight: Tensor | None, first: Tensor | None, k: int) -> Tensor:
    """(B, k) for images of few tokens, (B, N, C), all of whose cosines are made."""
    x = x.detach().float()
    inverse = torch.linalg.vector_norm(x, dim=2).clamp_min_(EPSILON).reciprocal_()
    cosine = (x @ x.mT).mul_(inverse[:, :, None] * inverse[:, None])  # the same both ways
    distance = cosine.neg_().add_(1).clamp_min_(0)
    if first is None:
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # which nothing asks for again: a token is taken once
        alone = distance.amin(dim=2)
        first = (alone if weight is None else alone * weight).max(dim=1).indices
    taken, away = [first], distance.new_full(x.shape[:2], torch.inf)
    image = torch.arange(len(x), device=x.device)
    while len(taken) < k:
        torch.minimum(away, distance[image, taken[-1]], out=away)
        away.scatter_(1, taken[-1][:, None], -torch.inf)
        gain = away if weight is None else torch.where(away < 0, away, away * weight)
        taken.append(gain.max(dim=1).indices)
    return torch.stack(taken, dim=1)


def _distance(cosine: Tensor) -> Tensor:
    return (1 - cosine).clamp_min_(0)


def _most_isolated(cosines: CosineRows, weight: Tensor | None) -> int:
    """The token whose distance to its nearest neighbour, times its weight, is largest.

    Every row bounds the distances of the other tokens from above, so those that cannot win need none of their own. Where
    hardly any can be left out, as among random vectors, all pairs are made at once.
    """
    n = len(cosines.x)
    place = torch.arange(n, device=cosines.x.device)
    away, seen = cosines.x.new_full((n,), torch.inf), torch.zeros_like(place, dtype=torch.bool)
    index, size, rounds = place[:: -(-n // BLOCK)], BLOCK, 0
    while n > 1:
        whole = rounds == 2 and len(index) > n // 2 and n <= cosines.most
        distance = _distance(cosines.make_all() if whole else cosines.make(index[:size]))
        index = place if whole else index[:size]
        distance.scatter_(1, index[:, None], torch.inf)
        torch.minimum(away, distance.amin(dim=0), out=away)
        away[index], seen[index] = torch.minimum(away[index], distance.amin(dim=1)), True
        value = away if weight is None else away * weight
        best = value.where(seen, -torch.inf).argmax()
        open_ = ~seen & ((value > value[best]) | ((value == value[best]) & (place < best)))
        index = value.where(open_, -torch.inf).argsort(descending=True)[: int(open_.sum())]
        if not len(index):
            return int(best)
        size, rounds = min(2 * size, cosines.most), rounds + 1
    return 0


def _dpp(x: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(k,) for one image (N, C) and its relevance (N,)."""
    cosines = CosineRows(x)
    gain = relevance.square() * cosines.nonzero
    floor = RESOLUTION * float(gain.max())
    factor = gain.new_zeros(k, len(x))  # of Cholesky: its columns at all tokens
    taken: list[int] = []
    while len(taken) < k:
        best, t = int(gain.argmax()), len(taken)
        value = float(gain[best])
        if value <= floor:
            left = relevance.masked_fill(gain == -torch.inf, -torch.inf)
            by_relevance = left.sort(descending=True, stable=True).indices
            taken += by_relevance[: k - t].tolist()
            break
        taken.append(best)
        if len(taken) < k:
            similar = cosines.row(best, gain) * relevance * relevance[best]
            torch.addmv(similar, factor[:t].mT, factor[:t, best], alpha=-1, out=factor[t])
            factor[t] /= value**0.5
            gain -= factor[t].square()
            gain[best] = -torch.inf
    return torch.tensor(taken, device=x.device)
