"""HoliTom's outer part, from the features of a video to its merged tokens, against loops over frames and clusters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.signals import AttentionReceived, Signal
from tokenreduce.tokens import VisualTokens

from . import density_peaks, temporal_segmentation
from .case import Case

C = 896  # LLaVA-OneVision-0.5B
KEEP = 0.15
SIZES = [{"T": 64, "N": 196}, {"T": 256, "N": 196}, {"T": 1024, "N": 196}]
CPU_LIMIT = 1024 * 196
CUT, MOVES = 1 / 24, 0.03  # share of frames that start a shot, and of places that change from one frame to the next


def footage(frames: int, n: int, device: torch.device) -> Tensor:
    """(T, N, C): shots of 24 frames on average, in which most places only shiver."""
    x = torch.empty(frames, n, C)
    x[0] = torch.randn(n, C)
    for t in range(1, frames):
        x[t] = x[t - 1] + 0.05 * torch.randn(n, C)
        changed = torch.rand(n) < (1.0 if torch.rand(()) < CUT else MOVES)
        x[t, changed] = torch.randn(int(changed.sum()), C)
    return x.to(device)


def plain(x: Tensor, score: Tensor, method: HoliTom) -> Tensor:
    """Tokens (K, C) of the video ``x`` (T, N, C), segment by segment, frame by frame and cluster by cluster."""
    frames, n, _ = x.shape
    still = torch.stack([F.cosine_similarity(x[t].float(), x[t + 1].float(), dim=-1) for t in range(frames - 1)])
    still = still > method.tau
    segments, saved = temporal_segmentation.plain(still.cpu())
    ratio = min(KEEP * frames * n / (frames * n - saved), 1.0)
    tokens = []
    for start, stop in segments:
        held = still[start : stop - 1].all(dim=0) if stop - start > 1 else torch.zeros(n, dtype=torch.bool)
        static, moving = held.nonzero().flatten(), (~held).nonzero().flatten()
        clusters = round(len(static) * ratio)
        if clusters:
            mean = torch.stack([x[t, static].float() for t in range(start, stop)]).mean(dim=0)
            peaks, distance = density_peaks.plain(mean[None])
            centres = peaks[0].topk(clusters).indices.sort().values
            nearest = distance[0][:, centres].argmin(dim=1)
            nearest[centres] = torch.arange(clusters, device=x.device)
            for row, centre in enumerate(centres):
                members = (nearest == row).nonzero().flatten()
                members = members[members != centre]
                alone = mean[centre]
                mix = method.beta * alone + (1 - method.beta) * mean[members].mean(dim=0)
                tokens.append((mix if len(members) else alone)[None].to(x.dtype))
        for t in range(start, stop):
            kept = score[t, moving].topk(math.ceil(len(moving) * ratio)).indices.sort().values
            tokens.append(x[t, moving[kept]])
    return torch.cat(tokens)


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    frames, n = size["T"], size["N"]
    x, score = footage(frames, n, device).to(dtype), torch.rand(frames, n, device=device)
    method = HoliTom(keep=KEEP, exact=False, output_order="reference", neighbours=density_peaks.NEIGHBOURS)
    heard: dict[Signal, Tensor] = {AttentionReceived(0): score.flatten()[None]}
    layout = Layout(1, n, frames=frames)
    video = VisualTokens(features=x.flatten(0, 1)[None], layout=layout, signals=heard)

    def ours() -> Tensor:
        plan = method.reduce(video)
        return plan.carry(video.features)[0]

    def difference(a: Tensor, b: Tensor) -> float:
        if a.shape != b.shape:
            return math.inf
        return float(((a.float() - b.float()).abs().amax(dim=-1) > 1e-3).double().mean())

    return Case(
        ours,
        lambda: plain(x, score, method),
        flops=6 * x.numel(),
        bytes=(1 + KEEP) * x.nbytes,
        difference=difference,
        tolerance=0.01,
        note=f"keep {KEEP:.0%}; rows that differ come from near ties of densities",
    )
