"""Looks at a grid before anything of it runs: what every cell of a model or a task would fail at is said once."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

from tokenreduce.picture_tokens import PictureTokens

from ..harness.limits import check_batch_size, check_fixed, check_measured
from ..harness.settings import base_name
from . import tasks
from .cell import Cell
from .grid import Grid
from .identity import model_folder


def check(grid: Grid) -> None:
    """Raise ``ValueError`` for unknown tasks, and for what a model or its base cannot serve: tasks, batch sizes, and
    scaled pictures where the method was named."""
    tasks.check(grid.tasks, grid.include)
    if not grid.by_default:
        for cell in grid.cells:
            if (problem := _unscalable(cell)) is not None:
                raise ValueError(f"model {cell.model}: {problem}")
    for cell in {(cell.loads, cell.task): cell for cell in grid.cells}.values():
        check_cell(cell)


def check_cell(cell: Cell) -> None:
    """The same for what ``cell`` loads and asks."""
    base = base_name(cell.base, str(model_folder(cell.model)))
    check_batch_size(base, cell.batch_size)
    check_measured(tasks.outlines_of(cell.task, cell.include), base)


def served(grid: Grid) -> tuple[Grid, list[str]]:
    """``grid`` without the cells of methods taken by default that a model cannot serve for what its processor is; and why."""
    problems = [(cell, _unscalable(cell) if grid.by_default else None) for cell in grid.cells]
    left = tuple(cell for cell, why in problems if why is None)
    told = dict.fromkeys(f"{Path(cell.model).name}: {why}" for cell, why in problems if why is not None)
    return dataclasses.replace(grid, cells=left), list(told)


def _unscalable(cell: Cell) -> str | None:
    """Why ``downscale``, where it is what ``cell`` does, makes no sense on its model."""
    if cell.recipe.downscale is None:
        return None
    number, name = _fixed(str(model_folder(cell.model)))
    try:
        check_fixed(number, name, cell.recipe.downscale.budget)
    except ValueError as error:
        return str(error)
    return None


@cache
def _fixed(folder: str) -> tuple[int | None, str]:
    """Visual tokens of every picture, where that is a fixed number, and the name of the processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    return PictureTokens(processor).fixed(), type(processor).__name__
