"""Density peaks clustering with k nearest neighbours (DPC-kNN), in tiles instead of a table of all distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch

CHUNK = 256


class Peaks(NamedTuple):
    """Clusters of a set of vectors.

    Attributes:
        centre: (B, M) long, ascending.
        score: (B, N) float32, log of density times distance; -inf where a denser token is identical.
        assign: (B, N) long in [0, M), the cluster of every token; a centre belongs to its own.
    """

    centre: Tensor
    score: Tensor
    assign: Tensor


def density_peaks(x: Tensor, clusters: int, neighbours: int, *, chunk: int = CHUNK) -> Peaks:
    """The ``clusters`` tokens that are dense and far from anything denser; every other token joins the nearest.

    With d[i, j] = |x_i - x_j| / sqrt(C): log density of i = minus the mean of the squared distances to its k nearest
    tokens, itself (distance 0) included; delta_i = distance to the nearest denser token, for the densest token the largest
    distance in the set; centres are the highest density * delta. Of equal densities the lower index counts as denser; of
    equal scores and of equally near centres the lower index wins. Densities stay logarithms, so that none underflows.
    Distances are float32 differences, exact zeros for duplicates, recomputed in each of two passes over blocks of
    ``chunk`` x N; memory is O(B * chunk * N + B * N * k). Not differentiable.

    Args:
        x: (B, N, C), any float dtype.
        clusters: M, 1 to N.
        neighbours: k >= 1; more than N counts as N.
        chunk: rows per block.

    Errors: ``ValueError`` for a number of clusters or neighbours outside its range.

    Source: Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science 344, 2014; the k-nearest
        density follows Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component
        analysis", Knowledge-Based Systems 99, 2016.
    """
    batch, n, channels = x.shape
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters={clusters} of {n} tokens; allowed: 1 to {n}")
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; allowed: an int >= 1, for example 7")
    k = min(neighbours, n)
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().float() / channels**0.5
        limit = f"{k} neighbours are more than 32" if k > 32 else None
        if (fast := dispatch.kernel("density_peaks", x, limit=limit)) is not None:
            density, farthest = fast.density(x, k)
            score = density + torch.minimum(fast.nearest_denser(x, density), farthest[:, None]).log()
            return _clusters(x, score, clusters, fast.nearest)
        blocks = [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]
        density = x.new_empty(batch, n)
        farthest = x.new_zeros(batch)
        for rows in blocks:
            distance = _distance(x[:, rows], x)
            nearest = distance.topk(k, dim=-1, largest=False).values
            density[:, rows] = -nearest.square().mean(dim=-1)
            farthest = torch.maximum(farthest, distance.amax(dim=(1, 2)))
        score = x.new_empty(batch, n)
        index = torch.arange(n, device=x.device)
        for rows in blocks:
            own, other = density[:, rows, None], density[:, None]
            denser = (other > own) | ((other == own) & (index < index[rows, None]))
            delta = _distance(x[:, rows], x).masked_fill_(~denser, torch.inf).amin(dim=-1)
            delta = torch.minimum(delta, farthest[:, None])
            score[:, rows] = density[:, rows] + delta.log()
        return _clusters(
            x,
            score,
            clusters,
            lambda a, b: torch.cat([_distance(a[:, rows], b).argmin(dim=-1) for rows in blocks], dim=1),
        )


def _clusters(x: Tensor, score: Tensor, clusters: int, nearest: Callable[[Tensor, Tensor], Tensor]) -> Peaks:
    """The peaks of highest ``score``, and which of them is ``nearest`` to each row."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    centre = order[:, :clusters].sort(dim=1).values
    assign = nearest(x, x.gather(1, centre.unsqueeze(-1).expand(-1, -1, x.shape[-1])))
    own = torch.arange(clusters, device=x.device).expand_as(centre)
    return Peaks(centre, score, assign.scatter(1, centre, own))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(B, A, M) distances by differences: products would lose the small ones to cancellation."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
