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
    def ready(self) -> Iterator[Calibration]:
        """Hold the folder, and the worker with its model, for the ``with`` block."""
        with self.store.locked():
            try:
                self.plain = self._evaluated(Recipe())
                if not self.plain["result"]["score"]:
                    raise RuntimeError(
                        f"the unreduced model scores {self.plain['result']['score']} on {self.cell.task}"
                    )
                yield self
            finally:
                self._outcomes.close()  # type: ignore[attr-defined]

    def point(self, method: str, keep: float) -> Point:
        found = self._evaluated(Recipe.of(method, keep))
        row = next(row for row in rows([self.plain, found]) if row.method != "unreduced")
        kept, flops = row.relative or 0.0, 1.0 if row.flops_share is None else row.flops_share
        low, high = (kept if end is None else end for end in (row.relative_low, row.relative_high))
        return Point(method, keep, kept, low, high, flops, 1.0 if row.token_share is None else row.token_share)

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
