"""CenterCLIP: medoids of sets of tokens, by themselves or by their graph, and what becomes of the segments of a video."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.adapters.hooks.joined_frames import join
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_rows import UnitRows
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.centerclip import CenterCLIP
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    function = params.one_of("function", ("kmedoids", "spectral", "segments"), "segments")
    given: dict[str, Any] = {"clusters": params["clusters"]}
    given |= {name: params[name] for name in ("distance", "norm_p", "pre_norm", "sigma") if name in params}
    if "aggregation" in params:
        given["aggregation"] = params.one_of("aggregation", {"None": "medoid", None: "medoid", "mean": "mean"}, None)
    if function == "spectral":
        given["clustering"] = "spectral"
        if params.one_of("graph", ("HeatKernel", "KNN"), "HeatKernel") == "KNN":
            given["neighbours"] = params["knn_k"]
        else:
            params.noted("knn_k")  # of the other graph
    if function == "segments":
        return segments(inputs["tokens"], params["segments"], given)
    found = CenterCLIP(**given).clustered(inputs["tokens"], given["clusters"])
    return {"medoids": found.medoids, "assign": found.label}


def segments(tokens: Tensor, count: int, given: dict[str, Any]) -> dict[str, Tensor]:
    """Of videos (videos, frames, 1 + n, C), the first segments one frame longer where frames cannot be shared evenly."""
    parts = [segment(own, given) for own in tokens.tensor_split(count, dim=1)]
    return {name: torch.stack([part[name] for part in parts], dim=1) for name in parts[0]}


def segment(tokens: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """Of one segment of each video, as the hooks join it."""
    frames, n = tokens.shape[1], tokens.shape[2] - 1
    rows = tokens.flatten(0, 1)
    method = CenterCLIP(joins=frames, **given)
    state = TowerState.start(rows, [Layout(1, n)] * len(rows), UnitRows(1, 1))
    x = join(state, rows, Step("encoder", layer=6, when="before", joins=frames, prefix="mean"))
    shown = VisualTokens(features=x, layout=state.layouts[0], stage="encoder", layer=6, prefix=state.prefix)
    plan = method.reduce(shown).check(shown)
    return {"tokens": plan.carry(x), "medoids": plan.source[:, 1:] - 1, "assign": plan.assign[:, 1:] - 1}
