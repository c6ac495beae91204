"""Failures that cannot be overlooked: the command line of lmms-eval catches exceptions and then exits with 0."""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenreduce.adapters.upstream.lmms_eval_run import under_command_line


class EvaluationFailed(RuntimeError):
    """Scores would be wrong, or there are none."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Under the command line of lmms-eval, leave with exit code 1 and the reason; elsewhere let errors pass."""
    try:
        yield
    except Exception as error:
        if not under_command_line():
            raise
        if not isinstance(error, (EvaluationFailed, ValueError, TypeError)):
            traceback.print_exc()
        raise SystemExit(f"tokenreduce: {type(error).__name__}: {error}") from error


_expected: dict[Path, float] = {}  # output path: when its evaluation started


def fail_without_evaluation() -> None:
    """Where lmms-eval's command line was asked for ``--model tokenreduce``: see at its end that there was an evaluation."""
    if (
        "lmms" in sys.argv[0]
        and any(a in ("tokenreduce", "--model=tokenreduce") for a in sys.argv)
        and "list" not in sys.argv
    ):
        atexit.register(_check_evaluated)


def expect_results(folder: Path | None) -> None:
    """When the process ends, see that lmms-eval wrote its results into ``folder``; else say so and exit with 1."""
    atexit.unregister(_check_evaluated)
    if folder is None or folder in _expected or not under_command_line() or int(os.environ.get("RANK", "0")):
        return
    if not _expected:
        atexit.register(_check_results)
    _expected[folder] = time.time() - 1  # file systems round


def _check_results() -> None:
    for folder, start in _expected.items():
        if not any(file.stat().st_mtime >= start for file in folder.glob("**/*_results.json")):
            _leave(f"lmms-eval wrote no results into {str(folder)!r}")


def _check_evaluated() -> None:
    _leave("lmms-eval ended without an evaluation")


def _leave(why: str) -> None:
    print(f"tokenreduce: {why}; see its messages above", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
