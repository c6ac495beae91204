"""HoloV: projected tokens and their attention; rows crop by crop, lost ones as rows of zeros."""

from __future__ import annotations

from typing import Any

from golden_cases.common import make, one_or_several, show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.holov import HoloV


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """In the release's order and with its zero rows, unless the vector says otherwise."""
    (attention,), _ = one_or_several(1, inputs["attn"])
    (x,), back = one_or_several(2, inputs["tokens"])
    released = {
        "crops": params["num_crops"],
        "overflow": params.get("overflow", "zeros"),
        "output_order": params.get("output_order", "reference"),
    }
    plan = show(make(HoloV, params, **released), [attention], Layout(1, x.shape[1]), x)[1]
    rows = plan.carry(x) if plan.features is None else plan.features
    return back({"order": plan.source, "tokens": rows})
