"""PruMerge and PruMerge+: the [CLS] query and all keys as one head, and rows before the projector."""

from __future__ import annotations

from typing import Any

from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.outlier_absorption import absorb, by_count, by_outliers


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    query, keys, x = inputs["query_cls"], inputs["keys"], inputs["hidden"][1:]
    score = attention_row(query[None, None, None], keys[None, None], len(query) ** -0.5)[:, 0, 1:]
    plus, ratio = params.get("plus", False), params.get("ratio")
    if params.get("adaptive", ratio is None):
        params.agree(ratio=None, num_outliers=int(by_outliers(score, parity="release")[1]))
        order, count = by_outliers(score, plus, "release")  # what the vectors hold is the output of the release
    else:
        if plus:
            raise ValueError(
                "parameters plus and adaptive=False; this driver honours PruMerge+ with a number of its own only"
            )
        k = int(len(x) * ratio)
        params.agree(num_outliers=k)
        order, count = by_count(score, k)
    normalise = params.get("normalise", False)
    made = absorb(
        score, keys[None, 1:], x[None], order, count, int(count.max()), params.get("neighbours", 32), normalise
    )
    assert bool(made.valid.all())
    return {"keep_indices": order[0, : int(count)], "tokens": made.rows[0], "scores": score[0]}
