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


class _Misfits:
    """Which models and tasks failed on an import at their first cell, so that none of their other cells can do better.

    What they failed with is held back until a cell of another model or task shows that not everything fails so.
    """

    def __init__(self, queue: deque[Cell]) -> None:
        self.queue = queue
        self.passed: set[tuple[Any, ...]] = set()
        self.held: list[tuple[Cell, Outcome]] = []
        self.reasons: dict[str, None] = {}

    def take(self, cell: Cell, outcome: Outcome) -> list[tuple[Cell, Outcome]]:
        """What is settled by the ``outcome`` of ``cell``: itself, what was held back, or nothing yet."""
        place = cell.loads, cell.task
        if outcome.error is None or outcome.error["kind"] != MISFIT or place in self.passed:
            self.passed.add(place)
            return [*self._released(), (cell, outcome)]
        self.reasons[outcome.error["text"]] = None
        error = {**outcome.error, "text": f"{outcome.error['text']} (not tried again after {cell})"}
        left = [other for other in self.queue if (other.loads, other.task) == place]
        for other in left:
            self.queue.remove(other)
        self.held += [(cell, outcome), *((other, Outcome(error=error)) for other in left)]
        return self._released() if self.passed else []

    def _released(self) -> list[tuple[Cell, Outcome]]:
        held, self.held = self.held, []
        return held


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

    A model or a task whose first cell fails on an import is not tried again: its other cells fail with the same words.

    Errors: ``SweepFailed`` when a result cannot be written, and when every model and task fails on an import: nothing is
        written then; ``ValueError`` when ``out`` is in use or no sweep's.
    """
    store = Store(out)
    with store.locked():
        cells = {cell.key: cell for cell in grid.cells}
        tally = Tally(total=len(cells), broken=store.broken)
        queue, died, start = deque(pending(cells.values(), store, tally, retry)), Counter[str](), time.time()
        misfits = _Misfits(queue)
        for cell, outcome in pool.run(queue):
            if outcome.error is not None and outcome.error["kind"] == "died":
                died[cell.key] += 1
                if died[cell.key] <= retries:
                    queue.append(cell)
                    continue
            for settled, what in misfits.take(cell, outcome):
                status = _write(store, settled, what, tally)
                tally.count(settled, status, what.error)
                tally.seconds = time.time() - start
                tell(status, settled, what, tally)
        if misfits.held:
            raise SweepFailed(f"{' '.join(misfits.reasons)} No cell was evaluated, and nothing was written")
    return tally


def _write(store: Store, cell: Cell, outcome: Outcome, tally: Tally) -> str:
    """Keep ``outcome`` and return its status."""
    kind = None if outcome.error is None else outcome.error["kind"]
    status = DONE if kind is None else REFUSED if kind == "refused" else FAILED
    try:
        store.write(cell, status, **({"result": outcome.result} if kind is None else {"error": outcome.error}))
    except OSError as error:
        raise SweepFailed(
            f"{store.file(cell)} cannot be written ({error.strerror}); the {tally.skipped + tally.done} results "
            "before it are whole. Make room and run the same command again"
        ) from error
    return status
