"""Baseline: fewer frames of a video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.whole_frames import per_frame


@dataclass(frozen=True, kw_only=True)
class SampleFrames(Method):
    """Keep frames from the middle of equal stretches of a video, whole; of the last one an even grid: K tokens."""

    name = "sample_frames"
    title = "video: even sample of frames"
    media = ("video",)
    stages = ("projector",)
    looks_at = "nothing"

    def reduce(self, tokens: VisualTokens) -> Reduction:
        n, layout, k = per_frame(tokens, self.name), tokens.layout, self.budget.count(tokens.num_tokens)
        chosen = middles(layout.frames, -(-k // n))
        rest = k - (len(chosen) - 1) * n
        grid = (layout.height, layout.width) if layout.is_grid else (1, n)
        keep = (chosen[:-1, None] * n + torch.arange(n)).flatten()
        keep = torch.cat([keep, chosen[-1] * n + grid_partition(*grid, rest)[1]])
        keep = keep.to(tokens.features.device, non_blocking=True).expand(len(tokens.features), -1)
        return Reduction.select(keep, tokens.num_tokens, positions=self.positions)


def middles(frames: int, count: int) -> Tensor:
    """(count,) of ``frames`` frames, each in the middle of an equal stretch."""
    return (2 * torch.arange(count) + 1) * frames // (2 * count)
