"""Bipartite soft matching: who joins whom, and rounds of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.compaction import compact
from tokenreduce.kernels.energy_score import energy_score
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens

OutputOrder = Literal["raster", "reference"]
Matching = Literal["energy", "energy_bsm", "bsm"]
MATCHINGS = ("energy", "energy_bsm", "bsm")


class Pairs(NamedTuple):
    """Who joins whom among the N rows of a tensor; prefix rows belong to none of the four.

    Attributes:
        alone: (B, U) long, rows that neither move nor can be joined, in output order.
        hubs: (B, M) long, rows that can be joined, in output order.
        leaving: (B, r) long, rows that join another.
        joined: (B, r) long, the hub that each of them joins.
        score: (B, r) float32, cosine of the two.
    """

    alone: Tensor
    hubs: Tensor
    leaving: Tensor
    joined: Tensor
    score: Tensor

    def merge(self, prefix: int, weight: Tensor | None = None) -> Reduction:
        """Rows out: the ``prefix`` in place, the lone rows, the hubs as means weighted by ``weight`` (B, N)."""
        batch, n = len(self.hubs), prefix + sum(rows.shape[1] for rows in self[:3])
        first = torch.arange(prefix, device=self.hubs.device).expand(batch, -1)
        anchor = torch.cat([first, self.alone, self.hubs], dim=1)
        place = torch.arange(anchor.shape[1], device=anchor.device).expand_as(anchor)
        assign = torch.empty(batch, n, dtype=torch.long, device=anchor.device).scatter_(1, anchor, place)
        assign.scatter_(1, self.leaving, assign.gather(1, self.joined))
        return Reduction.merge(assign, anchor, weight=weight, covers=True)


def match(metric: Tensor, r: int, prefix: int = 0, window: Tensor | None = None) -> Pairs:
    """Bipartite soft matching (section 3): the ``r`` most similar (A, B) pairs of ``metric`` (B, N, C).

    Places are counted with a single prefix token ([CLS], place 0, in A); two ([CLS] and distillation, one in A and one
    in B) or more do not shift the parity of the patches among themselves. Prefix rows never merge.

    Args:
        metric: (B, N, C), prefix rows first.
        r: pairs, from 1 to half the patches.
        prefix: P, prefix rows.
        window: (B, N) long; rows join one of their own window, and another only once windows have no pair left.

    Returns:
        Pairs; lone rows of A ascending when there is a prefix, else the most similar first, as released.
    """
    batch, n, _ = metric.shape
    assert 1 <= r <= (n - prefix) // 2, "r fits"
    rows = torch.arange(n, device=metric.device).expand(batch, -1)
    a, b = ((rows[:, half], metric[:, half]) for half in halves(prefix))
    pairs = _best_pairs(*a, *b, r, window)
    return pairs._replace(alone=pairs.alone.sort(dim=1).values) if prefix else pairs


def halves(prefix: int) -> tuple[slice, slice]:
    """The rows of A and of B, by the parity of their place, behind ``prefix`` rows; a single one shifts it, see ``match``."""
    return slice(prefix + (prefix == 1), None, 2), slice(prefix + (prefix != 1), None, 2)


def best_pairs(metric: Tensor, a: Tensor, b: Tensor, r: int, window: Tensor | None = None) -> Pairs:
    """The best partner in ``b`` (B, M) of each of ``a`` (B, A), rows of ``metric`` (B, N, C); the ``r`` best pairs merge."""
    return _best_pairs(a, take_rows(metric, a), b, take_rows(metric, b), r, window)


def _best_pairs(a: Tensor, a_metric: Tensor, b: Tensor, b_metric: Tensor, r: int, window: Tensor | None) -> Pairs:
    best, partner = bipartite_matching(a_metric, b_metric, groups=_groups(window, a, b))
    score, order = best.sort(dim=1, descending=True, stable=True)
    a = a.gather(1, order)
    joined = b.gather(1, partner.gather(1, order[:, :r]))
    return Pairs(alone=a[:, r:], hubs=b, leaving=a[:, :r], joined=joined, score=score[:, :r])


def _groups(window: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    return None if window is None else (window.gather(1, a), window.gather(1, b))


def match_energy(
    metric: Tensor, r: int, margin: float, alpha: float = 1.0, prefix: int = 0, window: Tensor | None = None
) -> Pairs:
    """Energy matching of ``metric`` (B, N, C), its ``prefix`` rows left out (section 3).

    Candidates are the 2 r rows of highest energy, r at most half the patches; even ranks join the most similar odd rank.
    Lone rows come out in falling energy. With ``window`` (B, N), ranks are those of ``by_energy``, so that every row of A
    meets one of B in its own window, as long as windows have two rows left.
    """
    order = by_energy(metric, margin, alpha, prefix, window)
    return _join_nearest(metric, order[:, 0 : 2 * r : 2], order[:, 1 : 2 * r : 2], order[:, 2 * r :], window)


def match_energy_bsm(
    metric: Tensor, r: int, margin: float, alpha: float = 1.0, prefix: int = 0, window: Tensor | None = None
) -> Pairs:
    """ToMe's rule on ``metric`` (B, N, C) sorted by energy: even ranks against odd ranks, the ``r`` best pairs merge."""
    order = by_energy(metric, margin, alpha, prefix, window)
    return best_pairs(metric, order[:, 0::2], order[:, 1::2], r, window)


def match_text(metric: Tensor, r: int, margin: float, prefix: int = 0) -> Pairs:
    """The released variant for text: Gaussian energy of width ``1 - margin``; the ``r`` rows of highest energy join the
    most similar of the next ``r``."""
    order = top_k(energy_score(metric[:, prefix:], margin, shape="gaussian"), metric.shape[1] - prefix) + prefix
    return _join_nearest(metric, order[:, :r], order[:, r : 2 * r], order[:, 2 * r :], None)


def by_energy(
    metric: Tensor, margin: float, alpha: float = 1.0, prefix: int = 0, window: Tensor | None = None
) -> Tensor:
    """Rows (B, N - prefix) of ``metric`` by falling energy; of equal energies the lowest index first.

    With ``window`` (B, N), in pairs: ranks 0 and 1 of a window, 2 and 3, ... stay together, pairs come by the energy of the
    first, and rows without a second at the end.
    """
    energy = energy_score(metric[:, prefix:], margin, alpha)
    order = top_k(energy, metric.shape[1] - prefix)
    if window is not None:
        by_window = order.gather(1, window[:, prefix:].gather(1, order).argsort(dim=1, stable=True))
        order = by_window.gather(1, _pair_rank(energy.gather(1, by_window), window[:, prefix:].gather(1, by_window)))
    return order + prefix


def _pair_rank(energy: Tensor, window: Tensor) -> Tensor:
    """The order (B, N) of ``by_energy`` for rows sorted by ``window`` and, within, by falling ``energy``, both (B, N)."""
    place = torch.arange(window.shape[1], device=window.device).expand_as(window)
    fresh = torch.ones_like(window, dtype=torch.bool)
    fresh[:, 1:] = window[:, 1:] != window[:, :-1]
    rank = place - torch.where(fresh, place, 0).cummax(dim=1).values
    first = rank % 2 == 0
    paired = ~first
    paired[:, :-1] |= first[:, :-1] & ~fresh[:, 1:]
    of_pair = torch.where(first, energy, energy.roll(1, dims=1)).masked_fill(~paired, -torch.inf)
    return of_pair.sort(dim=1, descending=True, stable=True).indices


def _join_nearest(metric: Tensor, a: Tensor, b: Tensor, alone: Tensor, window: Tensor | None) -> Pairs:
    groups = _groups(window, a, b)
    score, partner = bipartite_matching(take_rows(metric, a), take_rows(metric, b), groups=groups)
    return Pairs(alone=alone, hubs=b, leaving=a, joined=b.gather(1, partner), score=score)


def in_rounds(
    tokens: VisualTokens, counts: list[int], pairs: Callable[[Tensor, int, int], Pairs], *, weighted: bool = True
) -> Reduction:
    """Merge ``counts[i]`` tokens (at most half of them) in round i, ``pairs(features, r, i)`` saying which.

    Similarities are those of the features (B, N, D), merged as they are, by sizes or, not ``weighted``, by plain means.
    """
    x, size = tokens.features, tokens.size
    source = assign = torch.arange(tokens.num_tokens, device=x.device).expand(len(x), -1)
    share = torch.ones_like(size)  # of each token in the mean of means that its row is
    for i, count in enumerate(counts):
        r = min(count, x.shape[1] // 2)
        if r == 0:
            continue
        step = pairs(x, r, i).merge(0, weight=size if weighted else None)
        x = step.carry(x)
        members = torch.zeros(step.source.shape, device=x.device).scatter_add_(1, step.assign, torch.ones_like(size))
        size = torch.zeros_like(members).scatter_add_(1, step.assign, size)
        source, assign = source.gather(1, step.source), step.assign.gather(1, assign)
        share = share / members.gather(1, assign)
    return Reduction.merge(assign, source, tokens.size if weighted else share)


def halvings(n: int, k: int) -> list[int]:
    """Counts for ``in_rounds`` that lead from ``n`` tokens to ``k``: halves as long as k are left, then what is missing.

    >>> halvings(80, 30), halvings(9, 9)
    ([40, 10], [])
    """
    counts = []
    while n // 2 >= k:
        counts.append(n // 2)
        n -= n // 2
    return counts + [n - k] * (n > k)


def ordered(plan: Reduction, order: OutputOrder) -> Reduction:
    """The rows of ``plan`` sorted by where they sit, those without a place last; for ``reference``, as they are."""
    if order == "reference":
        return plan
    index = plan.source.masked_fill(plan.source < 0, torch.iinfo(torch.long).max).sort(dim=1, stable=True).indices
    place = index.argsort(dim=1).gather(1, plan.assign.clamp_min(0))
    return replace(
        plan,
        source=plan.source.gather(1, index),
        assign=torch.where(plan.assign < 0, plan.assign, place),
        features=None if plan.features is None else take_rows(plan.features, index),
    )


def fold(features: Tensor, score: Tensor, k: int) -> Reduction:
    """HoliTom's inner step: keep the ``k`` tokens of highest ``score`` (B, N), fold each other one into the one it resembles.

    Folding in source order, h <- (h + h_source) / 2, gives the last of m sources the weight 1/2, the one before 1/4, ...,
    and 2^-m to the kept token: one weighted mean.
    """
    batch, n, _ = features.shape
    keep = top_k(score, k).sort(dim=1).values
    dropped = torch.ones(batch, n, device=score.device).scatter_(1, keep, 0.0)
    rest = top_k(dropped, n - k)  # ascending

    _, target = bipartite_matching(take_rows(features, rest), take_rows(features, keep))
    folded = torch.zeros_like(keep).scatter_add_(1, target, torch.ones_like(target))
    by_target, order = target.sort(dim=1, stable=True)
    later = folded.cumsum(dim=1).gather(1, by_target) - torch.arange(n - k, device=score.device)
    assign = torch.zeros(batch, n, dtype=torch.long, device=score.device)
    assign.scatter_(1, keep, torch.arange(k, device=score.device).expand_as(keep)).scatter_(1, rest, target)
    weight = torch.zeros(batch, n, device=score.device).scatter_(1, keep, torch.exp2(-folded.float()))
    weight.scatter_(1, rest.gather(1, order), torch.exp2(-later.float()))
    return Reduction.merge(assign, keep, weight, score=score)


def unmerge(x: Tensor, assign: Tensor) -> Tensor:
    """Copy the rows ``x`` (B, K, D) back to the N places they stand for, ``assign`` (B, N); a dropped place (-1) is zero."""
    return compact(x, assign)
