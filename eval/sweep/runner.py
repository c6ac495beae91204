"""Runs a grid: skips what is done, records what fails, goes on."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .cell import Cell
from .evaluator import Outcome
from .grid import Grid
from .pool import Pool
from .store import DONE, FAILED, REFUSED, Store


class SweepFailed(RuntimeError):
    """The sweep cannot go on; what was written is whole, and the same command resumes it."""


@dataclass
class Tally:
    """How a sweep went: cells by what became of them, ``skipped`` those done before, ``errors`` by cell."""

    total: int
    skipped: int = 0
    done: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.total - self.skipped - self.done - self.refused - self.failed

    def eta_s(self) -> float | None:
        """Seconds the rest will take, if it takes what the others took; None before the first."""
        ran = self.done + self.refused + self.failed
        return self.seconds / ran * self.left if ran else None


def pending(grid: Grid, store: Store, retry: bool = True) -> list[Cell]:
    """Cells without a result, each once, those of one model together. ``retry`` takes up those that failed or refused."""
    found = {cell.key: cell for cell in grid.cells}
    settled = (DONE,) if retry else (DONE, FAILED, REFUSED)
    return sorted((c for c in found.values() if store.status(c) not in settled), key=lambda c: str(c.loads))


def run(
    grid: Grid,
    out: Path,
    pool: Pool,
    *,
    retries: int = 1,
    retry: bool = True,
    tell: Callable[[str, Cell, Outcome, Tally], None] = lambda status, cell, outcome, tally: None,
) -> Tally:
    """Evaluate every cell of ``grid`` that has no result in ``out`` yet.

    Args:
        retries: times a cell is given to another worker after its own died.
        retry: take up cells that failed in an earlier run.
        tell: called after each cell with its status.

    Errors: ``SweepFailed`` when a result cannot be written; ``ValueError`` when ``out`` is in use or no sweep's.
    """
    store = Store(out)
    with store.locked():
        waiting = pending(grid, store, retry)
        tally = Tally(total=len({cell.key for cell in grid.cells}))
        tally.skipped = tally.total - len(waiting)
        queue, died, start = deque(waiting), Counter[str](), time.time()
        for cell, outcome in pool.run(queue):
            kind = None if outcome.error is None else outcome.error["kind"]
            if kind == "died":
                died[cell.key] += 1
                if died[cell.key] <= retries:
                    queue.append(cell)
                    continue
            status = DONE if kind is None else REFUSED if kind == "refused" else FAILED
            try:
                store.write(cell, status, **({"result": outcome.result} if kind is None else {"error": outcome.error}))
            except OSError as error:
                raise SweepFailed(
                    f"{store.file(cell)} cannot be written ({error.strerror}); the {tally.skipped + tally.done} results "
                    "before it are whole. Make room and run the same command again"
                ) from error
            setattr(tally, status, getattr(tally, status) + 1)
            tally.seconds = time.time() - start
            if outcome.error is not None:
                tally.errors[str(cell)] = f"{outcome.error['kind']}: {outcome.error['text']}"
            tell(status, cell, outcome, tally)
    return tally
