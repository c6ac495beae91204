"""Soft k-means of the tokens of a grid, each among the centres of cells that are near it, and the way back."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LEAST = 1e-16  # of what a centre weighs


class Cells(NamedTuple):
    """Cells that tile ``height`` x ``width`` tokens: rows of them, each of as many as ``across`` says; M in all, row by row."""

    height: int
    width: int
    across: tuple[int, ...]

    @classmethod
    def of(cls, size: tuple[int, int], count: int) -> Cells:
        """``count`` of them, at most as many as tokens, about as oblong as these; rows of unlike number where none else fit.

        >>> Cells.of((24, 24), 144).across == (12,) * 12, Cells.of((4, 4), 7).across
        (True, (2, 2, 3))
        """
        (height, width), most = size, min(size[0], count)
        rows = min(max(round(math.sqrt(count * height / width)), -(-count // width)), most)
        return cls(height, width, tuple((i + 1) * count // rows - i * count // rows for i in range(rows)))

    def middles(self) -> Tensor:
        """(M,) long, ascending, the token in the middle of each cell."""
        found = []
        for i, cells in enumerate(self.across):
            down, j = (2 * i + 1) * self.height // (2 * len(self.across)), torch.arange(cells)
            found.append(down * self.width + (2 * j + 1) * self.width // (2 * cells))
        return torch.cat(found)

    def means(self) -> Tensor:
        """(M, N) float32, the share of each token in the mean of a cell; cells overlap where they do not divide the grid."""
        inside = []
        down = _within(self.height, len(self.across))
        for i, cells in enumerate(self.across):
            inside.append((down[i][None, :, None] & _within(self.width, cells)[:, None]).flatten(1))
        found = torch.cat(inside).float()
        return found / found.sum(dim=1, keepdim=True)

    def near(self, window: int) -> Tensor:
        """(N, M) bool, which cells are within a square of ``window`` cells around the one that a token is in."""
        reach, home, columns = window // 2, _home(self.height, len(self.across)), []
        for i, cells in enumerate(self.across):
            beside = (_home(self.width, cells)[:, None] - torch.arange(cells)).abs() <= reach
            columns.append((((home - i).abs() <= reach)[:, None, None] & beside).flatten(0, 1))
        return torch.cat(columns, dim=1)


def _within(n: int, cells: int) -> Tensor:
    """(cells, n) bool, which of ``n`` places each of ``cells`` reaches into."""
    place, j = torch.arange(n), torch.arange(cells)[:, None]
    return (place >= j * n // cells) & (place * cells < (j + 1) * n)


def _home(n: int, cells: int) -> Tensor:
    """(n,) long, the cell that each of ``n`` places is in."""
    return torch.arange(n) * cells // n


@lru_cache(maxsize=32)
def _tables(cells: Cells, window: int) -> tuple[Tensor, Tensor]:
    return cells.means(), cells.near(window)


def soft_clusters(x: Tensor, cells: Cells, iterations: int, temperature: Tensor | float, window: int) -> Tensor:
    """(B, M, N) float32, what each centre is made of: rows that sum to 1.

    Args:
        x: (B, N, C) float32, tokens in raster order; centres start as the means of ``cells``.
        temperature: a factor of squared distances, or one per image, (B, 1, 1).
        window: odd, cells along the side of the square, around its own, whose centres a token may join.

    Source: arXiv 2210.01035, section 3.2, after "Superpixel Sampling Networks".
    """
    share, near = (table.to(x.device, non_blocking=True) for table in _tables(cells, window))
    x = x - x.mean(dim=1, keepdim=True)  # distances stay, and cancel less
    for _ in range(iterations):
        closeness = (-temperature * squared_distances(x, share @ x)).masked_fill(~near, -torch.inf)
        share = closeness.softmax(dim=2).mT
        share = share / share.sum(dim=2, keepdim=True).clamp_min(LEAST)
    return share


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """(B, N, M) of rows (B, N, C) and (B, M, C), float32, at least 0."""
    both = x.square().sum(dim=2)[:, :, None] + centres.square().sum(dim=2)[:, None]
    return (both - 2 * x @ centres.mT).clamp_min(0)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """(B, N) long, the nearest of all ``centres`` (B, M, C) to each token; ties: the lowest."""
    middle = x.mean(dim=1, keepdim=True)
    return squared_distances(x - middle, centres - middle).argmin(dim=2)


def rebuilding(x: Tensor, centres: Tensor, temperature: Tensor | float, k: int, norm: Literal["sum", "l2"]) -> Tensor:
    """(B, N, M), how tokens are made again of centres: by how near they were, ``x`` (B, N, C) to ``centres`` (B, M, C).

    The ``k`` nearest alone (ties all), all of them below 0; each token's weights are divided by their sum or L2 norm.

    Source: arXiv 2210.01035, section 3.3.
    """
    middle = x.mean(dim=1, keepdim=True)
    far = squared_distances(x - middle, centres - middle)
    weight = (
        -temperature * (far - far.amin(dim=2, keepdim=True))
    ).exp()  # the nearest weighs 1 before they are divided
    if 0 < k < far.shape[2]:
        weight = weight.masked_fill(far > far.kthvalue(k, dim=2, keepdim=True).values, 0)
    return weight / torch.linalg.vector_norm(weight, 1 if norm == "sum" else 2, dim=2, keepdim=True)


def neighbour_temperature(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, 1): 20 over the mean squared distance between neighbours in the grid; where all tokens are one, 20."""
    rows = x.unflatten(1, size)
    steps = [(rows[:, 1:] - rows[:, :-1]).flatten(1, 2), (rows[:, :, 1:] - rows[:, :, :-1]).flatten(1, 2)]
    mean = torch.cat(steps, dim=1).square().sum(dim=2).mean(dim=1)
    return (20 / torch.where(mean > 0, mean, 1))[:, None, None]
