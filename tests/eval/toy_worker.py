"""A worker of a sweep without a model: what a cell gives follows from its method and budget."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tokenreduce.eval.sweep.evaluator import Outcome
from tokenreduce.eval.sweep.worker import serve


def evaluate(cell):
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    (step,) = cell["recipe"]["methods"] or [{"method": "unreduced"}]
    name = step["method"]
    if name == "pool":
        return Outcome(error={"kind": "raised", "text": "RuntimeError: a bad day", "traceback": "..."})
    if name == "tome":
        return Outcome(error={"kind": "refused", "text": "ValueError: not here", "traceback": "..."})
    if name == "fastv":  # the first of these dies, the rest live
        mark = Path(os.environ["TOY_MARK"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if name == "pitome":
        os._exit(3)
    questions = [{"doc_id": i, "score": float(i % 2), "reply": str(step)} for i in range(50)]
    return Outcome(result={"metric": "exact_match", "score": 0.5, "questions": questions, "seconds": 0.01})


if __name__ == "__main__":
    serve(evaluate)
