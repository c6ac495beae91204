"""Sweeps of methods x budgets x tasks x models through lmms-eval: one file per cell, resumed where they stopped.

>>> from tokenreduce.eval import sweep
>>> grid = sweep.Grid.of({"model": "demo", "tasks": ["tr_demo_images"], "methods": ["hiprune"], "keep": [0.25]})
>>> len(grid.cells)  # unreduced, random, hiprune
3
"""

from __future__ import annotations

from .cell import Cell
from .grid import Grid
from .runner import SweepFailed, Tally, run
from .store import Store

__all__ = ["Cell", "Grid", "Store", "SweepFailed", "Tally", "run"]
