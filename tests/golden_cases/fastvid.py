"""FastVID: a prompt with one video, in the three forms of the release; newlines stay with rows that keep a token."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.anchor_merging import Shares, absorbed, anchors, shared_last, summed
from tokenreduce.methods.fastvid import FastVID
from tokenreduce.redundancy_trees import peak_scores
from tokenreduce.video_segments import neighbour_cosines, shared_within


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    variant = params.one_of("variant", ("onevision", "llava_video", "qwen2_5_vl"), "onevision")
    hidden, frame, saliency = inputs["hidden"], inputs["frame_global"], inputs["frame_attn"]
    frames, n = saliency.shape
    start, width = params["start"], n
    places = torch.arange(frames * n)
    if variant == "llava_video":
        width = params["grid"]
        params.agree(frames=frames, grid=width)
        places = places // width * (width + 1) + places % width
    elif variant == "onevision":
        params.agree(frames=frames, tokens_per_frame=n)
    else:
        _, h, w = params["grid_thw"]
        params.agree(grid_thw=[frames, h, 4 * n // h])
        if h * w != 4 * n:
            raise ValueError(f"parameter grid_thw of {h} x {w} patches, but the arrays hold {n} tokens a frame")
    span = len(places) + (len(places) // width if variant == "llava_video" else 0)
    x = hidden[start + places].view(frames, n, -1)
    method = FastVID(
        tau=params["tau"],
        least_segments=params["c"],
        same=params.get("ignore"),
        context=params["d"],
        period=params["p"],
        beta=params["beta"],
        neighbours=params.get("knn", 4),
        variant="parallel" if variant == "onevision" else "sequential",
    )
    segment, valid = method.segmented(frame)
    k = int(n * params["retention_ratio"])
    given = released(method, segment, valid, n, k, variant)
    made = absorbed(x, saliency, segment, given, neighbours=method.neighbours, beta=method.beta, sources=method.variant)
    kept = (made.salient | made.centre).flatten()
    out = hidden.clone()
    out[start + places[made.centre.flatten()]] = made.rows[made.centre.flatten()]
    keep = torch.ones(len(hidden), dtype=torch.bool)
    keep[start : start + span] = False
    keep[start + places[kept]] = True
    if variant == "llava_video":
        row = (kept.nonzero().flatten() // width).unique()
        keep[start + row * (width + 1) + width] = True
    keep = keep.nonzero().flatten()
    found = {
        "hidden": out[keep],
        "keep": keep,
        "segment_sizes": torch.bincount(segment),
        "frame_similarity": neighbour_cosines(frame),
        "context_per_frame": made.centre.sum(dim=1),
    }
    if variant == "onevision":
        found["salient"] = made.salient.nonzero()[:, 1].view(frames, -1)
        score, _ = peak_scores(x, ~made.salient, torch.full((frames,), method.neighbours))
        found["density_score"] = score[~made.salient].exp().view(frames, -1)
    return found


def released(method: FastVID, segment: Tensor, valid: Tensor, n: int, k: int, variant: str) -> Shares:
    """What the three forms of the release round to."""
    anchor, size = anchors(segment, valid, method.period), torch.bincount(segment)
    if variant == "onevision":
        part = int(k * method.context)
        centres = part * size // summed(segment, anchor.long())
        return Shares(torch.full_like(segment, k - part), centres[segment] * anchor)
    total = k * size
    part = (total.double() * method.context).long()
    salient = shared_within(segment, valid.long() * n, total - part)
    if variant == "llava_video":
        return Shares(salient, shared_last(segment, anchor, part))
    centres = shared_last(segment, anchor, part.clamp_min(1)).clamp_max(n // 2)
    return Shares(torch.minimum(salient, n - centres), centres)
