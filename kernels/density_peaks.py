"""Density peaks clustering with k nearest neighbours (DPC-kNN), in tiles instead of a table of all distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import row_blocks, take_rows

SMALL = 1024  # tokens up to which the table of distances is made once, whole
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


@dispatch.operation
def density_peaks(x: Tensor, clusters: int, neighbours: int, *, chunk: int | None = None) -> Peaks:
    """The ``clusters`` tokens that are dense and far from anything denser; every other token joins the nearest.

    With d[i, j] = |x_i - x_j| / sqrt(C): log density of i = minus the mean of the squared distances to its k nearest
    tokens, itself (distance 0) included; delta_i = distance to the nearest denser token, for the densest token the largest
    distance in the set; centres are the highest density * delta. Of equal densities the lower index counts as denser; of
    equal scores and of equally near centres the lower index wins. Densities stay logarithms, so that none underflows.
    Distances come from float64 products around the mean of the set, those within rounding of 0 being 0, so that duplicates
    have none; of more than 1,024 tokens they are made anew in each of two passes over blocks of rows, and memory is
    O(B * chunk * N + B * N * k). Not differentiable.

    Args:
        x: (B, N, C), any float dtype.
        clusters: M, 1 to N.
        neighbours: k >= 1; more than N counts as N.
        chunk: rows per block; None: as many as stay in the cache, or all of up to 1,024.

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
    if fast is not None:
        x = x.detach().float() / channels**0.5
        density, farthest = fast.density(x, k)
        delta, nearest = fast.nearest_denser(x, density), lambda peaks: fast.nearest(x, take_rows(x, peaks))
    else:
        table = Table(_centred(x), n if chunk is None and n <= SMALL else chunk)
        density, farthest = _density(table, k)
        delta, nearest = _nearest_denser(table, density), table.nearest
    score = density + torch.minimum(delta, farthest[:, None]).log()
    order = score.sort(dim=1, descending=True, stable=True).indices
    centre = order[:, :clusters].sort(dim=1).values
    assign = nearest(centre)
    own = torch.arange(clusters, device=x.device).expand_as(centre)
    return Peaks(centre, score, assign.scatter(1, centre, own))


def distances(x: Tensor) -> Tensor:
    """(B, N, N) float32, |x_i - x_j| / sqrt(C) between the vectors ``x`` (B, N, C), as above, in one table."""
    return next(distance for _, distance in Table(_centred(x), x.shape[1]).blocks())


def _centred(x: Tensor) -> Tensor:
    x = x.detach().double()
    return x.sub(x.mean(dim=1, keepdim=True)).div_(x.shape[2] ** 0.5)


class Table:
    """Distances of vectors ``x`` (B, N, C) float64 by blocks of rows, kept where one block is all of them.

    They come from products, of which cancellation leaves the small ones right to 3 digits.
    """

    def __init__(self, x: Tensor, chunk: int | None) -> None:
        self.x = x
        self.square = x.square().sum(dim=-1)
        self.slices = list(row_blocks(x.shape[1], x.shape[1], chunk))
        self.kept = self._distance(self.slices[0], x, self.square) if len(self.slices) == 1 else None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and their distances (B, A, N) float32 to all."""
        for rows in self.slices:
            yield rows, self._distance(rows, self.x, self.square) if self.kept is None else self.kept

    def nearest(self, centre: Tensor) -> Tensor:
        """(B, N) long, the first of the nearest of the vectors ``centre`` (B, M)."""
        if self.kept is not None:
            return self.kept.mT.gather(1, centre[..., None].expand(-1, -1, self.kept.shape[1])).argmin(dim=1)
        peaks, square = take_rows(self.x, centre), self.square.gather(1, centre)
        return torch.cat([self._distance(rows, peaks, square).argmin(dim=-1) for rows in self.slices], dim=1)

    def _distance(self, rows: slice, to: Tensor, to_square: Tensor) -> Tensor:
        scale = self.square[:, rows, None] + to_square[:, None]
        square = torch.baddbmm(scale, self.x[:, rows], to.mT, alpha=-2)
        return square.where(square > scale.mul_(RESOLUTION), 0.0).float().sqrt_()


def _density(table: Table, k: int) -> tuple[Tensor, Tensor]:
    """Log density (B, N) and the largest distance (B,) of each set."""
    density = table.x.new_empty(table.x.shape[:2], dtype=torch.float32)
    farthest = table.x.new_zeros(len(table.x), dtype=torch.float32)
    for rows, distance in table.blocks():
        nearest = distance.topk(k, dim=-1, largest=False).values
        density[:, rows] = -nearest.square().mean(dim=-1)
        farthest = torch.maximum(farthest, distance.amax(dim=(1, 2)))
    return density, farthest


def _nearest_denser(table: Table, density: Tensor) -> Tensor:
    """(B, N) distance to the nearest denser token, inf where there is none."""
    delta = torch.empty_like(density)
    index = torch.arange(density.shape[1], device=density.device)
    for rows, distance in table.blocks():
        own, other = density[:, rows, None], density[:, None]
        denser = (other > own) | ((other == own) & (index < index[rows, None]))
        delta[:, rows] = torch.where(denser, distance, torch.inf).amin(dim=-1)
    return delta
