"""What stands still in a segment of a video, and what that leaves of the budget to each of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.schedules import largest_remainder


def stands(still: Tensor, start: int, stop: int) -> Tensor:
    """(N,) bool, places that stand still in frames ``start`` to ``stop`` - 1; none do in a single frame."""
    return still[start : stop - 1].all(dim=0) if stop - start > 1 else still.new_zeros(still.shape[1])


def standing(still: Tensor, segments: Sequence[tuple[int, int]], n: int) -> Tensor:
    """(S, N) bool, the same for all ``segments`` of a video of ``n`` places at once."""
    lengths = torch.tensor([stop - start for start, stop in segments])
    segment = torch.arange(len(segments)).repeat_interleave(lengths)
    inside = segment.diff() == 0
    changes = torch.zeros(len(segments), n, dtype=torch.long).index_add_(
        0, segment[1:][inside], (~still[inside]).long()
    )
    return (changes == 0) & (lengths > 1)[:, None]


def corrected(spans: Sequence[tuple[int, int]], n: int, budget: Budget) -> tuple[int, int, float]:
    """T * N, what is left of it when places that stand still count once per segment, and the ratio of that to keep.

    What is saved goes to all parts alike: r' = min(r * T * N / (T * N - saved), 1).
    """
    total = sum(frames for frames, _ in spans) * n
    left = total - sum((frames - 1) * static for frames, static in spans)
    wanted = budget.keep * total if isinstance(budget.keep, float) else budget.count(total)
    return total, left, min(wanted / left, 1.0)


def allot(spans: Sequence[tuple[int, int]], n: int, budget: Budget, *, exact: bool) -> list[list[int]]:
    """How many tokens each part of a video keeps: per segment its clusters, then each of its frames.

    Args:
        spans: segments of the video; ``n`` places per frame; ``budget`` for the T * N tokens of them all.
        exact: T * N tokens of ``budget`` in all, by largest remainder (ties: the earliest part), or fewer where no more are
            left; False rounds clusters to the nearest (half to even) and frames up. At least one token in either case.
    """
    total, left, ratio = corrected(spans, n, budget)
    sizes = [size for frames, static in spans for size in (static, *[n - static] * frames)]
    clusters = [is_first for frames, _ in spans for is_first in (True, *[False] * frames)]
    quotas = [size * ratio for size in sizes]
    if exact:
        counts = largest_remainder(quotas, min(budget.count(total), left))
    else:
        slack = 1e-9  # a product that should be whole
        counts = [round(q) if first else math.ceil(q - slack) for q, first in zip(quotas, clusters)]
        if not any(counts):
            counts[max(range(len(quotas)), key=lambda i: quotas[i])] = 1
    parts = iter(counts)
    return [[next(parts) for _ in range(frames + 1)] for frames, _ in spans]
