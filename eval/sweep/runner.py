"""Runs a grid: skips what is done, records what fails, goes on."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cell import Cell
from .evaluator import MISFIT, Outcome
from .grid import Grid
from .pool import Pool
from .store import DONE, FAILED, REFUSED, Store


class SweepFailed(RuntimeError):
    """The sweep cannot go on; what was written is whole, and the same command resumes it."""


@dataclass
class Tally:
    """How a sweep went: cells by what became of them, ``skipped`` those done before, ``errors`` by cell, ``broken`` files.

    ``kept``: of those that failed or were refused, how many did so in an earlier run and were not taken up.
    """

    total: int
    skipped: int = 0
    done: int = 0
    refused: int = 0
    failed: int = 0
    kept: int = 0
    seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)

    @property
    def ran(self) -> int:
        return self.done + self.refused + self.failed - self.kept

    @property
    def left(self) -> int:
        return self.total - self.skipped - self.kept - self.ran

    def eta_s(self) -> float | None:
        """Seconds the rest will take, if it takes what the others took; None before the first."""
        return self.seconds / self.ran * self.left if self.ran else None

    def count(self, cell: Cell, status: str, error: Mapping[str, Any] | None) -> None:
        setattr(self, status, getattr(self, status) + 1)
        if error is not None:
            self.errors[str(cell)] = f"{error['kind']}: {error['text']}"


def pending(cells: Iterable[Cell], store: Store, tally: Tally, retry: bool) -> list[Cell]:
    """Those of ``cells`` to run, those of one model together; the others go into ``tally`` as what they are.

    ``retry`` takes up those that failed or were refused.
    """
    waiting = []
    for cell in cells:
        known = store.read(cell)
        if known is None or (retry and known["status"] != DONE):
            waiting.append(cell)
        elif known["status"] == DONE:
            tally.skipped += 1
        else:
            tally.kept += 1
            tally.count(cell, known["status"], known["error"])
    return sorted(waiting, key=lambda c: str(c.loads))


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

    Errors: ``SweepFailed`` when a result cannot be written, and when the first cell shows that two installed packages do not
        fit, which no other cell would survive: nothing is written then; ``ValueError`` when ``out`` is in use or no sweep's.
    """
    store = Store(out)
    with store.locked():
        cells = {cell.key: cell for cell in grid.cells}
        tally = Tally(total=len(cells), broken=store.broken)
        queue, died, start = deque(pending(cells.values(), store, tally, retry)), Counter[str](), time.time()
        for cell, outcome in pool.run(queue):
            kind = None if outcome.error is None else outcome.error["kind"]
            if kind == "died":
                died[cell.key] += 1
                if died[cell.key] <= retries:
                    queue.append(cell)
                    continue
            if kind == MISFIT and tally.ran == 0:
                assert outcome.error is not None
                raise SweepFailed(f"{outcome.error['text']} No cell was evaluated, and nothing was written")
            status = DONE if kind is None else REFUSED if kind == "refused" else FAILED
            try:
                store.write(cell, status, **({"result": outcome.result} if kind is None else {"error": outcome.error}))
            except OSError as error:
                raise SweepFailed(
                    f"{store.file(cell)} cannot be written ({error.strerror}); the {tally.skipped + tally.done} results "
                    "before it are whole. Make room and run the same command again"
                ) from error
            tally.count(cell, status, outcome.error)
            tally.seconds = time.time() - start
            tell(status, cell, outcome, tally)
    return tally
