"""HoliTom: segmentation, clustering, the outer part with any pooling and newlines, the fold inside the language model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from golden_cases.common import FACTS, query_and_key
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import Packing, carried, repacked, write
from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.temporal_segmentation import temporal_segmentation
from tokenreduce.kernels.temporal_similarity import temporal_similarity
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.temporal_redundancy import corrected, stands
from tokenreduce.tokens import VisualTokens

POOLS = {
    None: lambda grid, stride: grid,
    "none": lambda grid, stride: grid,
    "average": F.avg_pool2d,
    "max": F.max_pool2d,
    "bilinear": lambda grid, stride: F.interpolate(
        grid, [math.ceil(side / stride) for side in grid.shape[2:]], mode="bilinear"
    ),
}
#: where newlines go, and whether the tokens come in raster order or the clusters of a segment first
NEWLINES = {"grid": "raster", "frame": "raster", "one_token": "reference", "no_token": "reference", None: "reference"}


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    if "x" in inputs:
        return clusters(inputs["x"], params)
    if "hidden" in inputs:
        return inner(inputs["hidden"], inputs["attn_last_row"], params)
    return outer(inputs, params) if "attn" in inputs else segmentation(inputs, params)


def segmentation(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    x, method = inputs["feat"], HoliTom(tau=params["tau"], max_window=params["max_window"])
    similarity = temporal_similarity(x)
    torch.testing.assert_close(similarity, inputs.get("sim", similarity), rtol=0, atol=1e-5)
    still = similarity > method.tau
    segments, saved = temporal_segmentation(still, method.max_window)
    masks = [stands(still, start, stop) for start, stop in segments]
    means = [x[start:stop].mean(dim=0) * mask[:, None] for (start, stop), mask in zip(segments, masks)]
    return {
        "segments": inclusive(segments),
        "static_mask": torch.stack(masks),
        "static_mean": torch.stack(means),
        "total_reduced": torch.tensor(saved),
    }


def clusters(x: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    """Every place of one frame stands still: the whole frame is clustered."""
    m, n = params["clusters"], x.shape[1]
    wanted = params.get("k_requested", params.get("k", 7))
    released = params.get("k", min(wanted, m)) == min(
        wanted, m
    )  # as many neighbours as clusters, or as tokens, at most
    params.agree(k=min(wanted, m if released else n))
    method = HoliTom(
        neighbours=wanted,
        beta=params.get("beta", 0.6),
        plain_mean=params.get("plain_mean", False),
        reference_k=released,
    )
    centre, score, _ = density_peaks(x, m, min(wanted, m) if released else wanted)
    merged = []
    for one in x:
        still = torch.ones(n, dtype=torch.bool)
        assign, source, weight = method._segment(one[None], torch.zeros(1, n), still, [m, 0])
        assert torch.equal(source, centre[len(merged)])
        merged.append(group_mean(one[None], assign[None], m, weight[None])[0])
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :m]
    return {"centers": centre, "centers_by_score": best, "merged": torch.stack(merged)}


def outer(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """One video (T, N, D). Pooling and newlines are the model's: one newline after each grid row or frame that still holds
    a token, or after the last token; none where the vector has no embedding of it."""
    x, score, width = pooled(inputs["feat"], inputs["attn"], params)
    frames, n, _ = x.shape
    order, breaks = params.one_of("newline", NEWLINES, None), params.get("newline")
    params.one_of("dominant_share", (1.0,), 1.0)  # the part of it that clusters dynamic tokens is not implemented
    method = HoliTom(
        keep=params["retain_ratio"],
        neighbours=params["k"],
        exact=params.get("exact", False),
        reference_k=params.get("reference_k", True),
        output_order=order,
        **{name: params[name] for name in ("tau", "beta", "max_window", "plain_mean", "ratio") if name in params},
    )
    step = method.plan(FACTS)[0]
    layout = Layout(n // width, width, frames=frames)
    features = x.flatten(0, 1)[None]
    tokens = VisualTokens(features, layout, step.stage, signals={step.needs[0]: score.reshape(1, -1)})
    plan = method.reduce(tokens).check(tokens)
    still = temporal_similarity(x) > method.tau
    segments, _ = temporal_segmentation(still, method.max_window)
    spans = [(stop - start, int(stands(still, start, stop).sum())) for start, stop in segments]
    found, source = plan.carry(tokens.features)[0], plan.source[0]
    lengths = [int(((source >= start * n) & (source < stop * n)).sum()) for start, stop in segments]
    sequence, unit = found, {"grid": width, "frame": n, "one_token": frames * n}.get(breaks)
    if "newline" in inputs and unit is not None:
        sizes = (source // unit).unique_consecutive(return_counts=True)[1].tolist()
        sequence = torch.cat([row for piece in found.split(sizes) for row in (piece, inputs["newline"][None])])
    return {
        "tokens": found,
        "sequence": sequence,
        "pooled": x,
        "segments": inclusive(segments),
        "segment_lengths": torch.tensor(lengths),
        "retain_ratio": torch.tensor(corrected(spans, n, method.budget)[2]),
    }


def pooled(x: Tensor, score: Tensor, params: Meta[Any]) -> tuple[Tensor, Tensor, int]:
    """Features (T, N, D) and scores (T, N) after the pooling of the model, and the width of the grid that is left."""
    pool, stride = params.one_of("pool", POOLS, None), params.get("pool_stride", 1)
    n = x.shape[1]
    side = params.get("side", math.isqrt(n))
    if side * side != n:
        if pool is not POOLS[None]:
            raise ValueError(f"{n} tokens of a frame in a grid of side {side}; this driver honours: square grids")
        return x, score, n

    def apply(values: Tensor) -> Tensor:
        return pool(values.unflatten(1, (side, side)).permute(0, 3, 1, 2), stride)

    small, grid = apply(score[..., None])[:, 0], apply(x)
    return grid.flatten(2).mT, small.flatten(1), small.shape[-1]


def inner(hidden: Tensor, last_row: Tensor, params: Meta[Any]) -> dict[str, Tensor]:
    """A sequence (L, D) on its way into layer K, its visual tokens in one piece."""
    length, n = len(hidden), params["visual_tokens"]
    span = torch.arange(n) + params["start"]
    method = HoliTom(layer=params["layer"], inner_keep=1 - params["drop_ratio"])
    facts = dataclasses.replace(FACTS, decoder_depth=params.get("layers", FACTS.decoder_depth))
    (step,) = [step for step in method.plan(facts) if step.stage == "llm"]
    assert step == Step("llm", layer=params["layer"], needs=step.needs)
    score = attention_row(*query_and_key(last_row[None, :, None]), 1.0)[:, 0]
    layout = Layout(1, 1, frames=n)
    (group,) = before = group_images([Image(0, span, layout)], span.device)
    group.features = hidden[None, span]
    tokens = VisualTokens(group.features, layout, "llm", step.layer, signals={step.needs[0]: score[:, span]})
    plan = method.reduce(tokens).check(tokens)

    after = group.apply(plan, "llm", step.layer, method.name)
    everything = Packing.untouched(torch.ones(1, length, dtype=torch.bool), [length])
    packing = repacked(everything, before, after)
    kept = plan.source[0] + params["start"]
    source = torch.ones(n, dtype=torch.bool).scatter(0, plan.source[0], False).nonzero().flatten()
    return {
        "hidden": write(take_rows(hidden[None], packing.order), packing, after, "features")[0],
        "position_ids": carried(packing, after)[0],
        "merge_source": source + params["start"],
        "merge_target": kept[plan.assign[0, source]],
    }


def inclusive(segments: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([(start, stop - 1) for start, stop in segments])
