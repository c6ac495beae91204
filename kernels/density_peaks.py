"""Density peaks clustering with k nearest neighbours (DPC-kNN), in tiles instead of a table of all distances."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import take_rows

CHUNK = 256
#: of the squared lengths of two vectors: what cancellation leaves of their squared distance in float64
RESOLUTION = 1e-12


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
    Distances come from float64 products around the mean of the set, those within rounding of 0 being 0, so that duplicates
    have none; they are made in each of two passes over blocks of ``chunk`` x N. Memory is O(B * chunk * N + B * N * k). Not
    differentiable.

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
    _, n, channels = x.shape
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters={clusters} of {n} tokens; allowed: 1 to {n}")
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; allowed: an int >= 1, for example 7")
    k = min(neighbours, n)
    limit = f"{k} neighbours are more than 32" if k > 32 else None
    fast = dispatch.kernel("density_peaks", x, limit=limit)
    with torch.autocast(x.device.type, enabled=False):
        if fast is not None:
            x = x.detach().float() / channels**0.5
            density, farthest = fast.density(x, k)
            delta, nearest = fast.nearest_denser(x, density), fast.nearest
        else:
            x = x.detach().double()
            x = (x - x.mean(dim=1, keepdim=True)) / channels**0.5
            blocks = [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]
            density, farthest = _density(x, k, blocks)
            delta, nearest = _nearest_denser(x, density, blocks), partial(_nearest, blocks=blocks)
        score = density + torch.minimum(delta, farthest[:, None]).log()
        order = score.sort(dim=1, descending=True, stable=True).indices
        centre = order[:, :clusters].sort(dim=1).values
        assign = nearest(x, take_rows(x, centre))
    own = torch.arange(clusters, device=x.device).expand_as(centre)
    return Peaks(centre, score, assign.scatter(1, centre, own))


def _density(x: Tensor, k: int, blocks: list[slice]) -> tuple[Tensor, Tensor]:
    """Log density (B, N) and the largest distance (B,) of each set."""
    density = x.new_empty(x.shape[:2], dtype=torch.float32)
    farthest = x.new_zeros(len(x), dtype=torch.float32)
    for rows in blocks:
        distance = _distance(x[:, rows], x)
        nearest = distance.topk(k, dim=-1, largest=False).values
        density[:, rows] = -nearest.square().mean(dim=-1)
        farthest = torch.maximum(farthest, distance.amax(dim=(1, 2)))
    return density, farthest


def _nearest_denser(x: Tensor, density: Tensor, blocks: list[slice]) -> Tensor:
    """(B, N) distance to the nearest denser token, inf where there is none."""
    delta = torch.empty_like(density)
    index = torch.arange(x.shape[1], device=x.device)
    for rows in blocks:
        own, other = density[:, rows, None], density[:, None]
        denser = (other > own) | ((other == own) & (index < index[rows, None]))
        delta[:, rows] = _distance(x[:, rows], x).masked_fill_(~denser, torch.inf).amin(dim=-1)
    return delta


def _nearest(x: Tensor, peaks: Tensor, blocks: list[slice]) -> Tensor:
    """(B, N) long, the first of the nearest of ``peaks`` (B, M, C)."""
    return torch.cat([_distance(x[:, rows], peaks).argmin(dim=-1) for rows in blocks], dim=1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(B, A, M) distances: from products in float64, of which cancellation leaves the small ones right to 3 digits."""
    near, far = a.square().sum(dim=-1)[..., None], b.square().sum(dim=-1)[:, None]
    square = torch.baddbmm(near + far, a, b.mT, alpha=-2)
    return square.where(square > RESOLUTION * (near + far), 0.0).float().sqrt_()
