"""Evaluates single points on a small calibration set, as cells of a sweep: kept, and taken up again."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..recipe import Recipe
from ..report import rows
from ..sweep.cell import Cell
from ..sweep.evaluator import MISFIT
from ..sweep.pool import Pool
from ..sweep.store import DONE, FAILED, REFUSED, Store
from .choice import Point


class Calibration:
    """``point(method, keep)`` on the questions of ``cell``, against its unreduced model, which is evaluated first.

    Errors: ``ValueError`` for a method that the model refuses; ``RuntimeError`` for a cell that fails.
    """

    def __init__(self, cell: Cell, store: Store, pool: Pool) -> None:
        self.cell, self.store = cell, store
        self._queue: deque[Cell] = deque()
        self._outcomes = pool.run(self._queue)

    @contextmanager
    def ready(self, shares: bool = True) -> Iterator[Calibration]:
        """Hold the folder, and the worker with its model, for the ``with`` block.

        Errors: ``RuntimeError`` for a task without a score of its own, and, where ``shares`` of the unreduced score will be asked
        for, for a score that has none: 0 where higher is better, or below 0.
        """
        with self.store.locked():
            try:
                self.plain = self._evaluated(Recipe())
                (self.unreduced,) = rows([self.plain])[:1]
                self._check(shares)
                yield self
            finally:
                self._outcomes.close()  # type: ignore[attr-defined]

    def point(self, method: str, keep: float) -> Point:
        found = self._evaluated(Recipe.of(method, keep))
        row = next(row for row in rows([self.plain, found]) if row.method != self.unreduced.method)
        if row.score is None or self.unreduced.score is None:
            raise RuntimeError(f"{method} keep={keep}: task {self.cell.task} gave no number; see what lmms-eval wrote")
        kept, gain = row.relative, row.described.gain(row.score, self.unreduced.score)
        low, high = (kept if end is None else end for end in (row.relative_low, row.relative_high))
        flops, tokens = (1.0 if share is None else share for share in (row.flops_share, row.token_share))
        return Point(method, keep, kept, low, high, flops, tokens, gain, row.ttft_ms)

    def _check(self, shares: bool) -> None:
        score, task = self.plain["result"]["score"], self.cell.task
        if score is None:
            raise RuntimeError(
                f"task {task} has no score of its own to go by; a group without a mean has none: name one of its tasks"
            )
        if shares and (score < 0 or (score == 0 and self.unreduced.higher_is_better)):
            raise RuntimeError(
                f"the unreduced model scores {score:g} on {task}, of which no share can be kept; --flops and --ms find the best "
                "score within a cost instead, another task or a larger --limit may have a score above 0"
            )

    def _evaluated(self, recipe: Recipe) -> dict[str, Any]:
        cell = dataclasses.replace(self.cell, recipe=recipe)
        if self.store.status(cell) != DONE:
            self._queue.append(cell)
            _, outcome = next(self._outcomes)
            if outcome.error is not None:
                kind = outcome.error["kind"]
                if kind == MISFIT:
                    raise RuntimeError(outcome.error["text"])
                self.store.write(cell, REFUSED if kind == "refused" else FAILED, error=outcome.error)
                problem = ValueError if kind == "refused" else RuntimeError
                raise problem(f"{recipe}: {kind}: {outcome.error['text']}")
            self.store.write(cell, DONE, result=outcome.result)
        found = self.store.read(cell)
        assert found is not None
        return found
