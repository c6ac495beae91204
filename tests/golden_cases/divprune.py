"""DivPrune: tokens of one image or several; the order of choice and the set."""

from __future__ import annotations

from typing import Any

from golden_cases.common import kept_mask, make, one_or_several, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.divprune import DivPrune


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    (x,), back = one_or_several(2, inputs["tokens"])
    n = x.shape[1]
    given = {}
    if "subset_ratio" in params:
        given["keep"] = max(1, round(params["subset_ratio"] * n))
        params.agree(keep=given["keep"])
    taken = show(make(DivPrune, params, **given, output_order="reference"), [], Layout(1, n), x)[1].source
    plan = show(make(DivPrune, params, **given), [], Layout(1, n), x)[1]
    return back({"order": taken, "keep_indices": plan.source, "keep_mask": kept_mask(plan), "tokens": plan.carry(x)})
