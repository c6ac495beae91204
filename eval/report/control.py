"""Dropping at random at the same cost: the score between two measured budgets of ``random``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .points import Cell, Point, pooled


def _tokens(point: Point, task: str) -> float | None:
    tokens, whole = point.mean("equivalent_tokens", task), point.mean("tokens_in", task)
    return tokens / whole if tokens is not None and whole else None


def _flops(point: Point, task: str) -> float | None:
    flops, whole = point.mean("flops", task), point.mean("flops_unreduced", task)
    return flops / whole if flops is not None and whole else None


AXES: dict[str, Callable[[Point, str], float | None]] = {"tokens": _tokens, "flops": _flops}


@dataclass(frozen=True)
class Score:
    """The control's score at one cost; ``told``: which budgets it lies between, or why there is none."""

    told: str
    score: float | None = None
    replicates: np.ndarray | None = None
    cell: Cell = None  # type: ignore[assignment]


class Control:
    """``random`` at every budget that was measured, all its seeds together, and the unreduced model at full cost."""

    def __init__(self, axis: str, task: str, metric: str, points: Sequence[Point]) -> None:
        self.axis, self.task, self.metric = axis, task, metric
        place = AXES[axis]
        known = [(place(p, task), p) for p in points if p.is_random or p.is_unreduced]
        self.line = sorted(((x, p) for x, p in known if x is not None), key=lambda pair: pair[0])

    def at(self, point: Point) -> Score:
        """The control at the cost of ``point``: score and replicates on a straight line between its neighbours."""
        if not any(p.is_random for _, p in self.line):
            return Score("no random")
        cost = AXES[self.axis](point, self.task)
        if cost is None:
            return Score("its cost is not known")
        close = [p for x, p in self.line if abs(x - cost) < 1e-9]
        if close:
            return self._between(close[0], close[0], 0.0)
        below = [pair for pair in self.line if pair[0] < cost]
        above = [pair for pair in self.line if pair[0] > cost]
        if not below or not above:
            return Score("outside what random was measured at")
        (x, low), (y, high) = below[-1], above[0]
        return self._between(low, high, (cost - x) / (y - x))

    def _between(self, low: Point, high: Point, weight: float) -> Score:
        (score_low, made_low), (score_high, made_high) = (pooled(p, self.task, self.metric) for p in (low, high))
        names = ["all tokens" if p.is_unreduced else f"random {p.keep}" for p in (low, high)]
        told = names[0] if low is high else " to ".join(names)
        if score_low is None or score_high is None:
            return Score(told)
        score = (1 - weight) * score_low + weight * score_high
        if isinstance(made_low, str) or isinstance(made_high, str):
            return Score(told, score, None, low.cells[0])
        return Score(told, score, (1 - weight) * made_low + weight * made_high, low.cells[0])
