"""ID-Selection: projected tokens and their importance; the order of choice, the set and the scores on the way."""

from __future__ import annotations

from typing import Any

from golden_cases.common import kept_mask, make, one_or_several, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.id_selection import IDSelection


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """With ``exhausted="index"``, what ports do: the vectors follow them."""
    (importance,), _ = one_or_several(1, inputs["scores"])
    (x,), back = one_or_several(2, inputs["features"])
    method = make(IDSelection, params, exhausted=params.get("exhausted", "index"))
    assert isinstance(method, IDSelection)
    n = x.shape[1]
    taken, value = method.take(x, importance, method.budget.count(n))
    plan = show(method, [importance], Layout(1, n), x)[1]
    return back({"order": taken, "picked_scores": value, "keep": plan.source, "keep_mask": kept_mask(plan)})
