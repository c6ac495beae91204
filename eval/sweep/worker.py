"""A process that evaluates the cells it is sent: ``python -m tokenreduce.eval.sweep.worker FILE_DESCRIPTOR``.

It writes no results, so that killing it loses nothing, and ends with the process that started it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .cell import Cell
from .evaluator import Evaluator, Outcome


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def serve(evaluate: Callable[[dict[str, Any]], Outcome]) -> None:
    """Answer cells, which come as ``Cell.as_dict``, until the other end closes."""
    threading.Thread(target=_follow, args=(int(sys.argv[2]),), daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    try:
        while True:
            connection.send(evaluate(connection.recv()))
    except (EOFError, BrokenPipeError):
        pass


if __name__ == "__main__":
    evaluator = Evaluator()
    serve(lambda cell: evaluator.evaluate(Cell.from_dict(cell)))
