"""The command line, one file per command."""

from __future__ import annotations

from tokenreduce.cli import bench, catalogue, demo, doctor, inspect, report, run, sweep, tune
from tokenreduce.cli.app import app

COMMANDS = (
    "demo",
    "run",
    "inspect",
    "sweep",
    "report",
    "tune",
    "bench",
    "methods",
    "models",
    "doctor",
)  # in the order of --help
app.registered_commands.sort(key=lambda command: COMMANDS.index(command.callback.__name__))  # type: ignore[union-attr]

__all__ = ["app", "bench", "catalogue", "demo", "doctor", "inspect", "main", "report", "run", "sweep", "tune"]


def main() -> None:
    """Entry point of the console script ``tokenreduce``."""
    app()
