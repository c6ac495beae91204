"""STORM's operators on one video as frames of a grid."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.common import show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.storm import Storm


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x = inputs["tokens"]
    t, h, w, _ = x.shape
    sample, count = params.one_of("sample", ("none", "stride", "count"), "none"), params.get("count", 0)
    stride, offset = params.get("stride", 1), params.get("offset", 0)
    pools = {name: params[name] for name in ("temporal_pool", "spatial_pool")}
    own = {"none": {}, "stride": {"stride": stride, "offset": offset}, "count": {"count": count}}[sample]
    features = x.flatten(0, 2)[None]
    plan = show(Storm(sample=sample, **pools, **own), [], Layout(h, w, frames=t, medium="video"), features)[1]
    rows, side = plan.carry(features)[0], pools["spatial_pool"]
    grid = (-(-h // side), -(-w // side))
    members = [(plan.assign[0] == row).nonzero().flatten() // (h * w) for row in range(0, len(rows), grid[0] * grid[1])]
    return {
        "tokens": rows.view(-1, *grid, rows.shape[-1]),
        "frames": torch.stack([torch.stack([frames.min(), frames.max() + 1]) for frames in members]),
    }
