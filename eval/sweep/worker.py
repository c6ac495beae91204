"""A process that evaluates the cells it is sent: ``python -m tokenreduce.eval.sweep.worker PARENT``.

It writes no results, so that killing it loses nothing, and ends with the process that started it.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .cell import Cell
from .evaluator import Evaluator, Outcome


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def serve(evaluate: Callable[[dict[str, Any]], Outcome]) -> None:
    """Answer the cells on standard input, pickles of ``Cell.as_dict``, with outcomes on standard output, until it closes."""
    threading.Thread(target=_follow, args=(int(sys.argv[1]),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    while True:
        try:
            cell = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(evaluate(cell), answers)
        answers.flush()


if __name__ == "__main__":
    evaluator = Evaluator()
    serve(lambda cell: evaluator.evaluate(Cell.from_dict(cell)))
