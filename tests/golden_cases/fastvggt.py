"""FastVGGT: who merges into whom of one metric, what of other rows becomes of it, and what each place is given back."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.methods.fastvggt import FastVGGT, Shape, every_tenth

SPECIAL = 5  # rows of one camera and four registers


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    height, width = params["height"], params["width"]
    metric, values = inputs["metric"][None], inputs["values"][None]
    n = metric.shape[1]
    shape = Shape(n // (height * width + SPECIAL), SPECIAL, height, width)
    method = FastVGGT(keep=1 - params["ratio"], protect=params["protect"], odd="released")
    found = method.merged(metric, shape, inputs["choice"])
    found.check(1, n)
    rows, is_hub = found.merge(values), method.destinations(shape, inputs["choice"])
    assign = found.assign[0]
    protected = every_tenth(n) if params["protect"] else assign[:0]
    place = torch.arange(n)
    row_of = torch.zeros(found.means, dtype=torch.long).scatter(0, assign[is_hub], place[is_hub])
    stays = torch.zeros(n, dtype=torch.bool).index_fill(0, protected, True)
    leaves = ~is_hub & ~stays & torch.isin(assign, assign[is_hub])
    role = torch.where(is_hub, 2, torch.where(stays, -1, torch.where(leaves, 0, 1)))
    return {
        "role": role,
        "target": torch.where(leaves, row_of[assign.clamp_min(0)], -1),
        "protected": protected,
        "dst_rows": rows[0, assign[is_hub]],
        "unmerged": place[role == 1],
        "total": torch.tensor(rows.shape[1]),
        "restored": found.copy_back(1.5 * torch.tanh(rows))[0],
    }
