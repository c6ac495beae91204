"""Looks at a grid before anything of it runs: what every cell of a model or a task would fail at is said once."""

from __future__ import annotations

from ..harness.limits import check_batch_size, check_measured
from ..harness.settings import base_name
from . import tasks
from .cell import Cell
from .grid import Grid
from .identity import model_folder


def check(grid: Grid) -> None:
    """Raise ``ValueError`` for unknown tasks, and for tasks and batch sizes that a model's base cannot serve."""
    tasks.check(grid.tasks, grid.include)
    for cell in {(cell.loads, cell.task): cell for cell in grid.cells}.values():
        check_cell(cell)


def check_cell(cell: Cell) -> None:
    """The same for what ``cell`` loads and asks."""
    base = base_name(cell.base, str(model_folder(cell.model)))
    check_batch_size(base, cell.batch_size)
    check_measured(tasks.outlines_of(cell.task, cell.include), base)
