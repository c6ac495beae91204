"""Words that look at the image, and what becomes of the visual tokens they do not look at: mathematics of SparseVLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.reduction import DROPPED
from tokenreduce.tokens import Rows

#: tokens kept after each of the three layers, by the average that the paper calls them after, of 576; with and without
#: recycling
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
PUBLISHED_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}

#: scale and bias of the first release for 192 of 576, which make a number of tokens of a rank
RANK = (13.5, 0.0)


def text_score(visual: Tensor, text: Rows) -> Tensor:
    """(B, Q) float32: the share of an image's tokens that each token of text gets, by softmax over the text of their dot
    products, averaged over the image; 0 at rows that are not valid.

    ``visual`` (B, N, D) and the text are embeddings, neither scaled nor at length 1.
    """
    product = visual.detach().float() @ text.features.detach().float().mT
    product = product.masked_fill(~text.valid[:, None], -torch.inf)
    return product.softmax(dim=-1).nan_to_num(0).mean(dim=1)


def raters(score: Tensor, valid: Tensor) -> Tensor:
    """(B, Q) bool: tokens of text whose ``score`` (B, Q) is above the mean of the ``valid`` ones; all of those where none is."""
    mean = score.masked_fill(~valid, 0).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)
    above = (score > mean) & valid
    return torch.where(above.any(dim=1, keepdim=True), above, valid)


def check_rank(rank: Any, *, adapts: bool, plain: bool) -> None:
    """Raise where ``rank``, a scale and a bias, is none, or does not say how many tokens are kept, or another parameter does."""
    if rank is not None and not adapts:
        raise ValueError(
            f"rank={rank!r} says how many tokens each image keeps; allowed: with keep='auto', or rank=None"
        )
    if adapts and not plain:
        raise ValueError(
            "keep='auto' takes the count of the first release, by the rank of attention; allowed: counts=None and version=1"
        )
    numbers = isinstance(rank, tuple) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in rank)
    if rank is not None and not (numbers and len(rank) == 2 and rank[0] > 0 and math.isfinite(sum(rank))):
        raise ValueError(
            f"rank={rank!r}; allowed: a scale > 0 and a bias. The paper's code uses (13.5, 0), (9, 6), (0.8, 0)"
        )


def by_rank(rank: Tensor, n: int, line: tuple[float, float], least: int, most: int) -> Tensor:
    """(B,) long: of ``n`` tokens how many are kept, ``int(scale * rank + bias)`` within ``least`` and ``most``, at most n - 1;
    all of them where the ``rank`` (B,) is their number."""
    scale, bias = line
    wanted = (rank.double() * scale + bias).long().clamp(least, most).clamp(1, max(n - 1, 1))
    return torch.where(rank == n, n, wanted)


def recycled(dropped: int) -> tuple[int, int]:
    """How many of ``dropped`` tokens are looked at once more, and how many clusters they make."""
    best = int(0.3 * dropped) + 1
    return best, int(best / 10) + 1


def clusters(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(B, count) long, the centres of ``x`` (B, N, C) by falling score, and (B, N) long, the place in it that each row joins.

    Density peaks with as many neighbours as clusters; of equal densities the lower index is denser.
    """
    peaks = density_peaks(x, count, count)
    order = peaks.score.gather(1, peaks.centre).sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1)
    return peaks.centre.gather(1, order), place.gather(1, peaks.assign)


def with_means(x: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` best of ``x`` (B, N, C) by ``score`` (B, N), in order, and behind them means of the best of the others.

    Returns (B, N) long, the row each token joins, and (B, K') long, where each row sits, as ``Reduction.merge`` takes them;
    and (B, N) long: 0 dropped, 1 kept, 2 in a mean.
    """
    if k == x.shape[1]:
        row = torch.arange(k, device=x.device).expand_as(score)
        return row, row, torch.ones_like(row)
    best, count = recycled(x.shape[1] - k)
    order = top_k(score, k + best)
    kept, again = order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values
    centre, place = clusters(take_rows(x, again), count)
    row = torch.arange(k, device=x.device).expand_as(kept)
    assign = torch.full_like(score, DROPPED, dtype=torch.long).scatter(1, kept, row).scatter(1, again, k + place)
    role = torch.zeros_like(assign).scatter(1, again, 2).scatter(1, kept, 1)
    return assign, torch.cat([kept, again.gather(1, centre)], dim=1), role


def lengths(n: int, kept: tuple[int, ...], *, recycle: bool) -> list[int]:
    """Tokens of an image of ``n`` from each pruning layer on, of which ``kept`` are wanted there."""
    found = []
    for k in kept:
        k = min(k, n - 1) if n > 1 else n
        n = k + (recycled(n - k)[1] if recycle and n > k else 0)
        found.append(n)
    return found


def average(n: int, kept: tuple[int, ...], runs: Sequence[int], *, recycle: bool) -> Fraction:
    """Tokens in a layer, averaged over stretches of ``runs`` layers."""
    return Fraction(sum(a * b for a, b in zip([n, *lengths(n, kept, recycle=recycle)], runs, strict=True)), sum(runs))


def reached(n: int, keep: float, runs: Sequence[int], *, recycle: bool) -> tuple[int, ...]:
    """``schedule`` for ``keep``, a fraction of ``n`` tokens or a count.

    Errors: ``ValueError`` where the layers before the first that prunes see too many for such an average.
    """
    goal = float(keep * n if isinstance(keep, float) else keep)
    least = average(n, (1,) * (len(runs) - 1), runs, recycle=recycle)
    if least > goal + 0.5:
        raise ValueError(
            f"keep={keep} of {n} tokens cannot be reached: all of them pass the first {runs[0]} of {sum(runs)} layers; "
            f"allowed: an average of {math.ceil(least)} or more. Drop earlier (layers=...), or shorten in front of the "
            "language model, for example with tr.wrap(model, tr.Pool(keep=0.5), tr.SparseVLM())"
        )
    return schedule(n, goal, runs, recycle=recycle)


def schedule(n: int, goal: float, runs: Sequence[int], *, recycle: bool) -> tuple[int, ...]:
    """Tokens to keep after each pruning layer, for ``goal`` of ``n`` in a layer on average, as published; elsewhere the counts
    for 192 of 576, all scaled by one number, the largest whose average is not above; then one token more where that comes
    nearer.
    """
    published = PUBLISHED if recycle else PUBLISHED_PLUS
    if n == 576 and tuple(runs) == (2, 4, 9, 17) and goal in published:
        return published[int(goal)]
    shape = published[192][: len(runs) - 1]
    shape += shape[-1:] * (len(runs) - 1 - len(shape))

    def kept(scale: float) -> tuple[int, ...]:
        return tuple(max(1, min(round(k / 576 * n * scale), n - 1)) for k in shape)

    low, high = 0.0, 576.0
    for _ in range(60):
        middle = (low + high) / 2
        if average(n, kept(middle), runs, recycle=recycle) <= goal:
            low = middle
        else:
            high = middle
    counts = kept(low)
    while True:
        tries = [counts]
        for i, k in enumerate(counts):
            most = n - 1 if i == 0 else counts[i - 1]
            tries.append((*counts[:i], min(k + 1, most), *counts[i + 1 :]))
        nearest = min(tries, key=lambda t: abs(average(n, t, runs, recycle=recycle) - Fraction(goal)))
        if nearest == counts:
            return counts
        counts = nearest
