"""Clusters of tokens around one of their own, its medoid: started from tokens far apart, without a draw; on them as they are, or
on the eigenvectors of their graph."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["euclidean", "cosine"]

ROUNDS = 100  # at most; far fewer do
SAME_SUM = 1e-6  # sums of distances this close, relative to the smaller, are equal: rounding would decide
SAME_NORM = 1e-5  # the same of norms where all rows are of norm 1
LEAST = 1e-6  # added to the norm that a row is divided by


class Medoids(NamedTuple):
    """``medoids`` (B, K) long, ascending, of B sets of tokens; ``label`` (B, N) long, which of them each token is with."""

    medoids: Tensor
    label: Tensor


def unit(x: Tensor) -> Tensor:
    """``x`` (B, N, C) float32, rows divided by their norm."""
    return x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + LEAST)


def distances(x: Tensor, kind: Distance, p: float) -> Tensor:
    """(B, N, N) between rows of ``x`` (B, N, C), symmetric: of exponent ``p`` (2: Euclidean), or one less the cosine."""
    if kind == "cosine":
        rows = unit(x)
        cosine = rows @ rows.mT
        return 1 - (cosine + cosine.mT) / 2
    return torch.cdist(x, x, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def longest(x: Tensor, *, alike: bool = False) -> Tensor:
    """(B,) long, the row of ``x`` (B, N, C) of largest norm; ties: the lowest. ``alike``: all are of norm 1 but for rounding."""
    norm = torch.linalg.vector_norm(x, dim=2)
    if not alike:
        return norm.argmax(dim=1)
    return (norm >= norm.amax(dim=1, keepdim=True) * (1 - SAME_NORM)).byte().argmax(dim=1)


def far_apart(distance: Tensor, first: Tensor, k: int) -> Tensor:
    """(B, k) long, ``first`` (B,), then always the token farthest from the nearest of those taken; ties: the lowest."""
    taken, away = [first], torch.full_like(distance[:, 0], torch.inf)
    sets = torch.arange(len(distance), device=distance.device)
    while len(taken) < k:
        away = torch.minimum(away, distance[sets, taken[-1]]).scatter(1, taken[-1][:, None], -1.0)  # none twice
        taken.append(away.argmax(dim=1))
    return torch.stack(taken, dim=1)


def nearest(distance: Tensor, medoids: Tensor) -> Tensor:
    """(B, N) long, which of ``medoids`` (B, K) is nearest to each token, and each of these with itself; ties: the first."""
    near = distance.gather(2, medoids[:, None].expand(-1, distance.shape[1], -1))
    return near.scatter(1, medoids[:, None], -1.0).argmin(dim=2)


def central(distance: Tensor, label: Tensor, k: int) -> Tensor:
    """(B, k) long, of the tokens of each ``label`` (B, N), the one whose distances to them sum to the least; ties: first."""
    own = label[:, :, None] == label[:, None]
    total = torch.where(own, distance, 0).sum(dim=2, dtype=torch.float64)
    least = total.new_full((len(label), k), torch.inf).scatter_reduce(1, label, total, "amin")
    best = total <= least.gather(1, label) * (1 + SAME_SUM)
    n = label.shape[1]
    place = torch.where(best, torch.arange(n, device=label.device), n)
    return label.new_full((len(label), k), n).scatter_reduce(1, label, place, "amin")


def k_medoids(distance: Tensor, first: Tensor, k: int) -> Medoids:
    """``k`` clusters of B sets of N tokens, until no medoid changes.

    On a device all rounds run, since to look would make it wait; those behind the last change leave everything as it is.

    Args:
        distance: (B, N, N), symmetric.
        first: (B,) long, the token to begin with.
        k: 1 to N.

    Source: Katsavounidis, Kuo and Zhang, "A new initialization technique for generalized Lloyd iteration", IEEE Signal
        Processing Letters 1994, for the start, as in arXiv 2205.00823, section 3.
    """
    medoids = far_apart(distance, first, k)
    for _ in range(ROUNDS):
        before, medoids = medoids, central(distance, nearest(distance, medoids), k)
        if medoids.device.type == "cpu" and torch.equal(before, medoids):
            break
    medoids = medoids.sort(dim=1).values
    return Medoids(medoids, nearest(distance, medoids))


def spectral_rows(x: Tensor, k: int, sigma: float, neighbours: int | None) -> Tensor:
    """(B, N, k) float64, rows of norm 1: eigenvectors of the ``k`` smallest eigenvalues of the graph of tokens ``x`` (B, N, C).

    Its edges weigh exp(-|x_i - x_j|^2 / (2 ``sigma``^2)), only those among the ``neighbours`` heaviest of one of their ends
    (itself included, ties all); None: all.

    Source: arXiv 2205.00823, section 3, after Ng, Jordan and Weiss, "On spectral clustering", NeurIPS 2001.
    """
    weight = (-distances(x.double(), "euclidean", 2.0).square() / (2 * sigma**2)).exp()
    if neighbours is not None and neighbours < x.shape[1]:
        heavy = weight >= weight.topk(neighbours, dim=2).values[..., -1:]
        weight = torch.where(heavy | heavy.mT, weight, 0)
    root = weight.sum(dim=2).rsqrt()
    laplacian = torch.eye(x.shape[1], device=x.device) - root[:, :, None] * weight * root[:, None]
    return F.normalize(torch.linalg.eigh(laplacian).eigenvectors[..., :k], dim=2, eps=LEAST)


def spectral_distances(rows: Tensor) -> Tensor:
    """(B, N, N) between ``spectral_rows``; those of one component of a graph are the same but for rounding, and as near."""
    distance = distances(rows, "euclidean", 2.0)
    return distance.masked_fill(distance < SAME_SUM, 0)
