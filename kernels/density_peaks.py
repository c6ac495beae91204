"""Density peaks clustering with k nearest neighbours (DPC-kNN), in tiles instead of a table of all distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import BLOCK, row_blocks, take_rows

SMALL = 1024  # tokens up to which the table of distances is made once, whole
#: of the squared lengths of two vectors: what cancellation leaves of their squared distance in float64
RESOLUTION = 1e-12
ABSENT = 1e300  # squared length of a row that is not there: far from everything


class Peaks(NamedTuple):
    """Clusters of sets of vectors.

    Attributes:
        centre: (B, M) long, ascending, M the most clusters of a set; where a set has fewer, its first one is repeated.
        score: (B, N) float32, log of density times distance; -inf where a denser token is identical, and of absent rows.
        assign: (B, N) long in [0, M), the cluster of every token; a centre belongs to its own. Of absent rows: 0.
    """

    centre: Tensor
    score: Tensor
    assign: Tensor


@dispatch.operation
def density_peaks(
    x: Tensor,
    clusters: int | Sequence[int],
    neighbours: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    chunk: int | None = None,
) -> Peaks:
    """The ``clusters`` tokens that are dense and far from anything denser; every other token joins the nearest.

    With d[i, j] = |x_i - x_j| / sqrt(C): log density of i = minus the mean of the squared distances to its k nearest
    tokens, itself (distance 0) included; delta_i = distance to the nearest denser token, for the densest token the largest
    distance in the set; centres are the highest density * delta. Of equal densities the lower index counts as denser; of
    equal scores and of equally near centres the lower index wins. Densities stay logarithms, so that none underflows.
    Distances come from float64 products around the mean of the set, those within rounding of 0 being 0, so that duplicates
    have none; of more than 1,024 tokens they are made anew in each of two passes over blocks of rows, and memory is
    O(chunk * N + B * N * k): of few tokens a block of sets is looked at together, of many one set. Not differentiable.

    Args:
        x: (B, N, C), any float dtype.
        clusters: 1 to N, of all sets or of each.
        neighbours: k >= 1, of all sets or of each; more than a set has count as all of it.
        lengths: B numbers, 1 to N: how many rows of each set are there, the first ones; None: all are.
        chunk: rows per block; None: as many as stay in the cache, or all of up to 1,024.

    Errors: ``ValueError`` for a number of clusters, neighbours or rows outside its range.

    Source: Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science 344, 2014; the k-nearest
        density follows Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component
        analysis", Knowledge-Based Systems 99, 2016.
    """
    batch, n, _ = x.shape
    length = _each("lengths", n if lengths is None else lengths, [n] * batch, "1 to {most}")
    m = _each("clusters", clusters, length, "1 to {most}")
    k = [
        min(own, most)
        for own, most in zip(_each("neighbours", neighbours, length, "an int >= 1, for example 7"), length)
    ]
    limit = f"{max(k)} neighbours are more than 32" if max(k) > 32 else None
    fast = dispatch.kernel("density_peaks", x, limit=limit)
    # on a CPU the tables of a few sets at a time
    blocks = row_blocks(batch, n * n, batch if fast is not None else max(1, BLOCK // n**2))
    made = [_peaks(x[own, : max(length[own])], m[own], k[own], length[own], max(m), fast, chunk) for own in blocks]
    score = nn.utils.rnn.pad_sequence(
        [row for own in made for row in own.score], batch_first=True, padding_value=-torch.inf
    )
    assign = nn.utils.rnn.pad_sequence([row for own in made for row in own.assign], batch_first=True)
    return Peaks(torch.cat([own.centre for own in made]), score, assign)


def _peaks(
    x: Tensor, m: list[int], k: list[int], length: list[int], most: int, fast: ModuleType | None, chunk: int | None
) -> Peaks:
    """Of a few sets, in as many columns as the longest has rows; centres in ``most`` columns."""
    n = x.shape[1]
    there = None if min(length) == n else torch.arange(n, device=x.device) < _on(length, x)[:, None]
    if fast is not None:
        x = x.detach().float() / x.shape[2] ** 0.5
        density, farthest = fast.density(x, max(k), _on(k, x), _on(length, x))
        density = density if there is None else density.masked_fill(~there, -torch.inf)
        delta, nearest = fast.nearest_denser(x, density), lambda peaks: fast.nearest(x, take_rows(x, peaks))
    else:
        table = Table(_centred(x, there), n if chunk is None and n <= SMALL else chunk, there)
        density, farthest = _density(table, k)
        delta, nearest = _nearest_denser(table, density), table.nearest
    score = density + torch.minimum(delta, farthest[:, None]).log()
    if there is not None:
        score = score.masked_fill(~there, -torch.inf)
    first = score.sort(dim=1, descending=True, stable=True).indices[:, : max(m)]
    place = torch.arange(max(m), device=x.device)
    fewer = place >= _on(m, x)[:, None]
    centre = first.masked_fill(fewer, n).sort(dim=1).values
    centre = torch.where(fewer, centre[:, :1], centre)
    assign = nearest(centre).scatter(1, centre, place.expand_as(centre).masked_fill(fewer, 0))
    centre = torch.cat([centre, centre[:, :1].expand(-1, most - max(m))], dim=1)
    return Peaks(centre, score, assign if there is None else assign.masked_fill(~there, 0))


def _each(name: str, value: int | Sequence[int], most: list[int], allowed: str) -> list[int]:
    """``value`` of every set, none less than 1 nor, unless it is of neighbours, more than ``most`` of the set."""
    own = [value] * len(most) if isinstance(value, int) else list(value)
    if len(own) != len(most):
        raise ValueError(f"{name} has {len(own)} numbers for {len(most)} sets; allowed: one for each")
    for number, limit in zip(own, most):
        if number < 1 or (number > limit and name != "neighbours"):
            raise ValueError(f"{name}={number} of {limit} tokens; allowed: {allowed.format(most=limit)}")
    return own


def _on(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers).to(like.device, non_blocking=True)


def squared_distances(x: Tensor) -> Tensor:
    """(B, N, N) float32, |x_i - x_j|^2 / C between the vectors ``x`` (B, N, C), as above, in one table."""
    return next(square for _, square in Table(_centred(x), x.shape[1]).blocks())


def nearest_of_lower(square: Tensor, level: Tensor, rows: slice = slice(None)) -> Tensor:
    """(B, A) the smallest of ``square`` (B, A, N) among columns of lower ``level`` (B, N) than that of the row; inf: none is.

    ``rows``: which of the N the A rows are.
    """
    level = level.float()
    # as a number that is -inf or inf: a choice by mask branches at every number
    higher = torch.sub(level[:, None] + 0.5, level[:, rows, None]).mul_(torch.inf)
    return torch.maximum(square, higher, out=higher).amin(dim=2)


def _centred(x: Tensor, there: Tensor | None = None) -> Tensor:
    x = x.detach().double()
    if there is None:
        return x.sub(x.mean(dim=1, keepdim=True)).div_(x.shape[2] ** 0.5)
    x = x.masked_fill(~there[..., None], 0.0)
    mean = x.sum(dim=1, keepdim=True) / there.sum(dim=1)[:, None, None]
    return x.sub_(mean).masked_fill_(~there[..., None], 0.0).div_(x.shape[2] ** 0.5)


class Table:
    """Squared distances of vectors ``x`` (B, N, C) float64 by blocks of rows, kept where one block is all of them.

    They come from products, of which cancellation leaves the small ones right to 3 digits. Rows that are not ``there`` (B, N)
    are at distance inf of everything.
    """

    def __init__(self, x: Tensor, chunk: int | None, there: Tensor | None = None) -> None:
        self.x, self.there = x, there
        self.length = x.square().sum(dim=-1)
        if there is not None:
            self.length.masked_fill_(~there, ABSENT)
        self.slices = list(row_blocks(x.shape[1], x.shape[1], chunk))
        self.kept = self._square(self.slices[0], x, self.length) if len(self.slices) == 1 else None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the squares of their distances (B, A, N) float32 to all."""
        for rows in self.slices:
            yield rows, self._square(rows, self.x, self.length) if self.kept is None else self.kept

    def nearest(self, centre: Tensor) -> Tensor:
        """(B, N) long, the first of the nearest of the vectors ``centre`` (B, M)."""
        if self.kept is not None:
            return take_rows(self.kept, centre).min(dim=1).indices
        peaks, length = take_rows(self.x, centre), self.length.gather(1, centre)
        return torch.cat([self._square(rows, peaks, length).min(dim=2).indices for rows in self.slices], dim=1)

    def _square(self, rows: slice, to: Tensor, to_length: Tensor) -> Tensor:
        scale = self.length[:, rows, None] + to_length[:, None]
        square = torch.baddbmm(scale, self.x[:, rows], to.mT, alpha=-2)
        return square.where(square > scale.mul_(RESOLUTION), 0.0).float()


def _density(table: Table, k: list[int]) -> tuple[Tensor, Tensor]:
    """Log density (B, N) and the largest distance (B,) of each set."""
    density = table.x.new_empty(table.x.shape[:2], dtype=torch.float32)
    farthest = table.x.new_zeros(len(table.x), dtype=torch.float32)
    own = _on(k, table.x)[:, None, None]
    more = torch.arange(max(k), device=own.device) >= own
    for rows, square in table.blocks():
        near = square.topk(max(k), dim=-1, largest=False).values.sqrt_().square_()  # of distances in float32
        near.masked_fill_(more, 0)
        density[:, rows] = -near.sum(dim=2) / own[..., 0]
        if table.there is not None:
            both = table.there[:, rows, None] & table.there[:, None]
            square = square.masked_fill(~both, 0)
        farthest = torch.maximum(farthest, square.amax(dim=(1, 2)))
    if table.there is not None:
        density.masked_fill_(~table.there, -torch.inf)
    return density, farthest.sqrt_()


def _nearest_denser(table: Table, density: Tensor) -> Tensor:
    """(B, N) distance to the nearest denser token, inf where there is none."""
    rank = density.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    return torch.cat([nearest_of_lower(square, rank, rows) for rows, square in table.blocks()], dim=1).sqrt_()
