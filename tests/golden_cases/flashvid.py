"""FlashVID: one video before the language model, as released, and the drop inside it."""

from __future__ import annotations

import math
from typing import Any

import torch
from golden_cases.common import FACTS, query_and_key
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.layout import Layout
from tokenreduce.methods.flashvid import PICKS, FlashVID
from tokenreduce.redundancy_trees import cuts
from tokenreduce.tokens import VisualTokens
from tokenreduce.video_segments import neighbour_cosines

SEGMENTS = 8


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if params.one_of("function", ("compress", "llm"), "compress") == "llm":
        return inner(inputs, params)
    x, attention = inputs["frames"], inputs["attn"]
    frames, n, _ = x.shape
    segmented = params.get("do_segment", True)
    complement = params.get("complementary_segment", True)
    least = params.get("min_segment_num", SEGMENTS)
    method = FlashVID(
        alpha=params.get("alpha", 0.7),
        picks=params.one_of("token_selection_method", PICKS, "attn_div_v2"),
        tau=params["temporal_threshold"],
        segment_threshold=params["segment_threshold"] if segmented else params.noted("segment_threshold"),
        least_segments=least if complement else 1,
        count=params.get("count", "direct"),
        exact=False,
    )
    budget = torch.full((frames,), math.ceil(n * params["retention_ratio"] * params.get("expansion", 1.25)))
    made = method.compressed(x, attention, budget, released=True)
    return {
        "tokens": made.rows,
        "keep": made.source,
        "segment_lengths": lengths(x, method),
        "selected": made.picked.nonzero()[:, 1].view(frames, -1),
    }


def lengths(x: Tensor, method: FlashVID) -> Tensor:
    """Frames of each segment; a cut that stands twice makes one of none."""
    if method.segment_threshold is None:
        return torch.tensor([len(x)])
    natural, added = cuts(neighbour_cosines(x.mean(dim=1)), method.segment_threshold, method.least_segments)
    ends = torch.cat([natural.nonzero(), added.nonzero()]).flatten().sort().values + 1
    return torch.cat([torch.tensor([0]), ends, torch.tensor([len(x)])]).diff()


def inner(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    row = inputs["attn"]
    start, n = params["visual_start"], params["visual_length"]
    method = FlashVID(inner_keep=params["llm_retention_ratio"], exact=False)
    step = method.plan(FACTS)[1]
    score = attention_row(*query_and_key(row[None, :, None]), 1.0)[:, 0, start : start + n]
    tokens = VisualTokens(
        torch.zeros(1, n, 1), Layout(1, n), "llm", step.layer, amount=step.amount, signals={step.needs[0]: score}
    )
    kept = method.reduce(tokens).source[0] + start
    whole = torch.arange(row.shape[1])
    keep = torch.cat([whole[:start], kept, whole[start + n :]])
    return {"keep": keep, "position_ids": keep}
