"""What tests of sweeps share: the grid of most of them, workers that only pretend, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval.sweep import Grid, run
from tokenreduce.eval.sweep.pool import Processes

NEEDS = "lmms-eval is not installed; pip install 'tokenreduce[eval]'"
OWN_TASKS = Path(__file__).parent / "eval/tasks"
BASIC = {"model": "demo", "tasks": ["tr_demo_images"], "methods": ["hiprune", "uniform"], "keep": [0.5, 0.25]}


def toy_run(grid: Grid, out: Path, slots: int = 1, **options: Any) -> Any:
    """A sweep by ``toy_worker``, which ``toys`` makes workers find."""
    return run(grid, out, Processes(slots, out / "logs", "toy_worker"), **options)


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])
