"""The command line, one file per command."""

from __future__ import annotations

from tokenreduce.cli import (
    bench,
    calibrate,
    catalogue,
    check_method,
    demo,
    doctor,
    inspect,
    new_method,
    report,
    reproduce,
    run,
    sweep,
    train,
    tune,
)
from tokenreduce.cli.app import app

COMMANDS = (
    "demo",
    "run",
    "inspect",
    "sweep",
    "report",
    "reproduce",
    "tune",
    "bench",
    "calibrate",
    "train",
    "methods",
    "models",
    "doctor",
    "check_method",
    "new_method",
)  # in the order of --help
app.registered_commands.sort(key=lambda command: COMMANDS.index(command.callback.__name__))  # type: ignore[union-attr]

__all__ = [
    "app",
    "bench",
    "calibrate",
    "catalogue",
    "check_method",
    "demo",
    "doctor",
    "inspect",
    "main",
    "new_method",
    "report",
    "reproduce",
    "run",
    "sweep",
    "train",
    "tune",
]


def main() -> None:
    """Entry point of the console script ``tokenreduce``."""
    app()
