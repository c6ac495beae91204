"""Greedy selection: the most distant token next (max-min), or the one that adds most volume (DPP), without a table of pairs.

Both rules repeat two steps: take the token of highest gain, lower the gains of the others. Gains only ever fall, so an old
gain is an upper bound. The reference works on a pool of the tokens of highest bound: their gains are brought up to date in
one matrix product, and tokens of the pool are taken as long as nothing outside can be better. What is never near the top
is never looked at again. The result is that of the plain loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import unit_rows

POOL = 128
SMALL = 1024  # tokens up to which the pool holds them all; more where they have more channels than there are tokens
STRIP = 480  # rows of a table that are multiplied at once
#: of the largest gain: what is left of a gain below this is rounding in float32
RESOLUTION = 1e-6


@dispatch.operation
def max_min_selection(x: Tensor, k: int, *, pool: int | None = None) -> Tensor:
    """``k`` tokens whose smallest cosine distance among each other is large, in the order they were taken.

    First the token farthest from its nearest neighbour, then always the one farthest from all taken so far. No token is
    taken twice; of equal distances the lowest index wins. Distances 1 - cosine are float32 whatever the dtype.

    Args:
        x: (B, N, C), any float dtype; a zero row has distance 1 to everything.
        k: tokens to take, 1 to N.
        pool: tokens the reference looks at together, by default 128, or all where their table is no larger than ``x`` or
            1,024 x 1,024; the result does not depend on it.

    Returns:
        (B, k) long.

    Errors: ``ValueError`` for k out of range.

    Source: the farthest-first traversal of Gonzalez, "Clustering to minimize the maximum intercluster distance",
        Theoretical Computer Science 38, 1985, in the form of Alvar et al., "DivPrune", CVPR 2025, arXiv 2503.02175.
    """
    pool = _checked(x, k, pool)
    fast = dispatch.kernel("greedy_selection", x, limit=_limit(x))
    if fast is not None:
        return fast.max_min_selection(x, k)
    return torch.stack([_max_min(unit_rows(rows), k, pool) for rows in x])


@dispatch.operation
def dpp_selection(x: Tensor, relevance: Tensor, k: int, *, pool: int | None = None) -> Tensor:
    """Greedy maximum a posteriori subset of the determinantal point process L = r_i cos(x_i, x_j) r_j, in the order taken.

    Every step takes the token that multiplies the determinant most: the largest Schur complement d_i, starting at r_i^2.
    Once no d exceeds 1e-6 of the first, everything left lies in the span of what was taken, and the most relevant tokens
    follow. No token is taken twice; of equal values the lowest index wins. Computed in float32 whatever the dtype.

    Args:
        x: (B, N, C), any float dtype.
        relevance: (B, N) float r >= 0; ones for diversity alone.
        k: tokens to take, 1 to N.
        pool: as for ``max_min_selection``; the result does not depend on it, up to rounding.

    Returns:
        (B, k) long.

    Errors: ``ValueError`` for k or the shape of ``relevance`` out of range.

    Source: Chen, Zhang and Zhou, "Fast greedy MAP inference for determinantal point process", NeurIPS 2018,
        arXiv 1709.05135; with this L, Zhang et al., "Beyond Attention or Similarity" (CDPruner), NeurIPS 2025,
        arXiv 2506.10967.
    """
    pool = _checked(x, k, pool)
    if relevance.shape != x.shape[:2]:
        raise ValueError(f"relevance has shape {tuple(relevance.shape)}; allowed: {tuple(x.shape[:2])}, one per token")
    fast = dispatch.kernel("greedy_selection", x, limit=_limit(x))
    if fast is not None:
        return fast.dpp_selection(x, relevance, k, RESOLUTION)
    relevance = relevance.detach().float()
    return torch.stack([_dpp(unit_rows(rows), r, k, pool) for rows, r in zip(x, relevance)])


def _checked(x: Tensor, k: int, pool: int | None) -> int:
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k={k} of {x.shape[1]} tokens; allowed: 1 to {x.shape[1]}")
    if pool is None:
        return POOL if x.shape[1] > max(SMALL, x.shape[2]) else x.shape[1]
    if pool < 1:
        raise ValueError(f"pool={pool}; allowed: an int >= 1, for example {POOL}")
    return pool


def _limit(x: Tensor) -> str | None:
    return None if x.shape[1] <= 65536 else f"{x.shape[1]} tokens are more than 65536"


def _max_min(x: Tensor, k: int, pool: int) -> Tensor:
    """(k,) for unit rows ``x`` (N, C)."""
    n = len(x)
    if n <= pool:
        return _max_min_of_few(x, k)
    taken = [_most_isolated(x, pool)]
    bound = 1 - x @ x[taken[0]]
    bound[taken[0]] = -torch.inf
    while len(taken) < k:
        top = bound.sort(descending=True, stable=True)
        rows = top.indices[:pool].sort().values
        rest, rival = float(top.values[pool]), int(top.indices[pool])
        near = x[rows]
        gain = 1 - (near @ x[taken].mT).amax(dim=1)
        gain[bound[rows] == -torch.inf] = -torch.inf
        distance = 1 - near @ near.mT
        place = rows.tolist()
        while len(taken) < k:
            best = int(gain.argmax())
            value = float(gain[best])
            if value < rest or (value == rest and rival < place[best]) or value == -torch.inf:
                break
            taken.append(place[best])
            torch.minimum(gain, distance[best], out=gain)
            gain[best] = -torch.inf
        bound[rows] = gain
    return torch.tensor(taken, device=x.device)


def _max_min_of_few(x: Tensor, k: int) -> Tensor:
    """As ``_max_min``, with a table of all distances."""
    distance = 1 - _cosines(x)
    distance.fill_diagonal_(torch.inf)
    taken = [distance.amin(dim=1).argmax()]
    distance.fill_diagonal_(-torch.inf)
    gain = distance[taken[0]].clone()
    while len(taken) < k:
        taken.append(gain.argmax())
        torch.minimum(gain, distance[taken[-1]], out=gain)
    return torch.stack(taken)


def _cosines(x: Tensor) -> Tensor:
    """(N, N) products of unit rows ``x`` (N, C); each pair is multiplied once."""
    table = x.new_empty(len(x), len(x))
    for top in range(0, len(x), STRIP):
        here, below = slice(top, top + STRIP), slice(top + STRIP, None)
        table[here, top:] = x[here] @ x[top:].mT
        table[below, here] = table[here, below].mT
    return table


def _most_isolated(x: Tensor, pool: int) -> int:
    """The row of ``x`` (N, C) whose highest cosine with another is lowest.

    Every row that is compared with all others bounds theirs from below, too; rows are left out once their bound is no
    lower than the best value found.
    """
    n = len(x)
    bound = x.new_full((n,), -torch.inf)
    done = torch.zeros(n, dtype=torch.bool, device=x.device)
    best, winner = torch.inf, n
    while True:
        order = bound.masked_fill(done, torch.inf).sort(stable=True)
        rows = order.indices[:pool]
        first, at = float(order.values[0]), int(rows[0])
        if bool(done[at]) or first > best or (first == best and at > winner):
            return winner
        rows = rows[~done[rows]].sort().values
        cosine = x[rows] @ x.mT
        cosine[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        torch.maximum(bound, cosine.amax(dim=0), out=bound)
        own = cosine.amax(dim=1)
        bound[rows], done[rows] = own, True
        i = int(own.argmin())
        if (float(own[i]), int(rows[i])) < (best, winner):
            best, winner = float(own[i]), int(rows[i])


def _dpp(x: Tensor, relevance: Tensor, k: int, pool: int) -> Tensor:
    """(k,) for unit rows ``x`` (N, C) and relevance (N,)."""
    n = len(x)
    exists = torch.linalg.vector_norm(x, dim=1) > 0
    bound = relevance.square() * exists
    floor = RESOLUTION * float(bound.max())
    taken: list[int] = []
    triangle = x.new_zeros(k, k)  # the Cholesky factor of L at what was taken
    while len(taken) < k:
        top = bound.sort(descending=True, stable=True)
        rest, rival = (float(top.values[pool]), int(top.indices[pool])) if n > pool else (-torch.inf, n)
        if float(top.values[0]) <= floor:
            left = relevance.masked_fill(bound == -torch.inf, -torch.inf)
            by_relevance = left.sort(descending=True, stable=True).indices
            return torch.tensor(taken + by_relevance[: k - len(taken)].tolist(), device=x.device)
        rows = top.indices[:pool].sort().values
        near, r = x[rows] if n > pool else x, relevance[rows]
        t = len(taken)
        share = x.new_zeros(k, len(rows))  # the factor's columns of the pool
        if t:
            across = (x[taken] @ near.mT) * relevance[taken][:, None] * r
            share[:t] = torch.linalg.solve_triangular(triangle[:t, :t], across, upper=False)
        gain = torch.where(bound[rows] == -torch.inf, -torch.inf, bound.new_zeros(()) + r.square())
        gain = gain * exists[rows] - share[:t].square().sum(dim=0)
        similar = _cosines(near).mul_(r[:, None]).mul_(r)
        place = rows.tolist()
        while t < k:
            best = int(gain.argmax())
            value = float(gain[best])
            if value <= floor or value < rest or (value == rest and rival < place[best]):
                break
            taken.append(place[best])
            triangle[t, :t], triangle[t, t] = share[:t, best], value**0.5
            share[t] = (similar[best] - share[:t, best] @ share[:t]) / value**0.5
            gain -= share[t].square()
            gain[best] = -torch.inf
            t += 1
        bound[rows] = gain
    return torch.tensor(taken, device=x.device)
