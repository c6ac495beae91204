"""A worker of a sweep without a model: what a cell gives follows from its method and budget."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tokenreduce.eval.sweep.evaluator import MISFIT, Outcome
from tokenreduce.eval.sweep.worker import serve


def evaluate(cell):
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    (step,) = cell["recipe"]["methods"] or [{"method": "unreduced"}]
    name = step["method"]
    if "TOY_MISFIT" in os.environ and os.environ.get("TOY_MISFIT_TASK", cell["task"]) == cell["task"]:
        with Path(os.environ["TOY_MARK"]).open("a") as tried:
            tried.write(f"{cell['task']}\n")
        return Outcome(error={"kind": MISFIT, "text": os.environ["TOY_MISFIT"], "traceback": "..."})
    if name == "pool" or "TOY_ALL_FAIL" in os.environ:
        return Outcome(error={"kind": "raised", "text": "RuntimeError: a bad day", "traceback": "..."})
    if name == "tome":
        return Outcome(
            error={"kind": "refused", "text": os.environ.get("TOY_REFUSAL", "ValueError: not here"), "traceback": "..."}
        )
    if name == "fastv":  # the first of these dies, the rest live
        mark = Path(os.environ["TOY_MARK"])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if name == "pitome":
        os._exit(3)
    questions = [{"doc_id": i, "score": float(i % 2), "reply": str(step)} for i in range(50)]
    cost = dict.fromkeys(
        ("tokens_in", "tokens_kept", "equivalent_tokens", "ttft_ms", "tokens_per_s", "method_ms", "peak_mib"), 1
    )
    result = {"metric": "exact_match", "score": 0.5, "questions": questions, "seconds": 0.01, "empty_answers": 0}
    return Outcome(result={**result, "measured": {**cost, "flops": 1, "flops_unreduced": 1}})


if __name__ == "__main__":
    serve(evaluate)
