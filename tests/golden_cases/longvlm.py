"""LongVLM: segments of one video, merged by a given list of counts, in the order of the rounds."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.matching import in_rounds, match
from tokenreduce.methods.longvlm import metric
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, segment, groups = inputs["feat"], params["frames_per_segment"], params.get("heads", 16)
    parts = x.unflatten(0, (-1, segment)).flatten(1, 2)
    counts, lengths = [], [parts.shape[1]]
    for r in params["r_list"]:
        counts.append(min(r, lengths[-1] // 2))
        lengths.append(lengths[-1] - counts[-1])
    tokens = VisualTokens(parts, Layout(1, parts.shape[1]))
    plan = in_rounds(tokens, counts, lambda f, r, _: match(metric(f, groups), r))
    size = torch.zeros(plan.source.shape).scatter_add_(1, plan.assign, torch.ones_like(tokens.size))
    return {"tokens": plan.carry(parts).flatten(0, 1), "size": size, "counts": torch.tensor(lengths)}
