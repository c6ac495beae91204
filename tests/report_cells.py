"""Cells of a sweep as reports read them."""

from __future__ import annotations

import numpy as np

from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.sweep import Cell, Store


def cost(kept, flops, whole=100.0):
    return {
        "tokens_in": whole, "tokens_kept": kept, "equivalent_tokens": kept, "flops": flops, "flops_unreduced": 1e9,
        "kv_bytes": 2.0**20 * kept, "kv_bytes_unreduced": 2.0**20 * whole, "ttft_ms": 20.0, "tokens_per_s": 50.0,
        "method_ms": 1.0, "peak_mib": 900.0,
    }  # fmt: skip


def result(marks, measured, task="t", **about):
    """A result with one task, one metric ``m``, and the entries ``marks``; ``about`` changes what is told of the metric."""
    metric = {"value": float(np.mean(marks)), "higher_is_better": True, "aggregation": "mean"} | about
    questions = [
        {"doc_id": i, "task": task, "cluster": None, "score": x, "scores": {"m": x}, "reply": "", "target": ""}
        for i, x in enumerate(marks)
    ]
    return {
        "tasks": {task: {"version": 1.0, "questions": len(marks), "metrics": {"m": metric}}}, "metric": "m",
        "score": metric["value"], "questions": questions, "measured": measured, "first_token": None, "empty_answers": 0,
        "whole_prefill": {"flops": 64.0, "flops_unreduced": 100.0}, "pictures": [],
        "environment": {"device": "cpu", "cpu": "a processor"},
    }  # fmt: skip


def stored(out, *cells):
    """The cells of a store: pairs of a recipe, or a cell, and its result."""
    store = Store(out / "sweep")
    with store.locked():
        for cell, made in cells:
            cell = cell if isinstance(cell, Cell) else Cell("demo", "t", cell)
            store.write(cell, "done", result=made)
    return store.everything()


def at(keep, name="random", **parameters):
    return Recipe.of(name, keep, parameters)


def drawn(result, *pictures, **about):
    made = [{"jpeg": "", "question": f"question {p['doc_id']}", "key": []} | p for p in pictures]
    return result | {"pictures": made, "not_drawn": []} | about
