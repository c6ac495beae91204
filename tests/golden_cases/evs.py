"""EVS: one video as frames of a grid; the kept places."""

from __future__ import annotations

from typing import Any

from golden_cases.common import show
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.evs import EVS


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """``q`` is the share pruned: the release keeps ``int(T h w (1 - q))``, evaluated in double."""
    x = inputs["frames"]
    t, h, w, _ = x.shape
    keep = max(1, int(t * h * w * (1 - params["q"])))
    plan = show(EVS(keep=keep), [], Layout(h, w, frames=t, medium="video"), x.flatten(0, 2)[None])[1]
    return {"keep_indices": plan.source[0]}
