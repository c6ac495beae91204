"""Baseline: average pooling over time, place by place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.whole_frames import by_first, per_frame


@dataclass(frozen=True, kw_only=True)
class PoolTime(Method):
    """Replace equal stretches of time at every place of a video by their means, K in all; places that cannot be alike take one
    stretch more, evenly spread. With fewer tokens than places, K near-square regions are averaged over the whole video."""

    name = "pool_time"
    title = "video: average pooling over time"
    media = ("video",)
    stages = ("projector",)
    looks_at = "nothing"

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return over_time(tokens, self.budget.count(tokens.num_tokens), self)


def over_time(tokens: VisualTokens, k: int, method: Method) -> Reduction:
    """``k`` means of stretches of time."""
    per_frame(tokens, method.name)
    layout = tokens.layout
    grid = (layout.height, layout.width) if layout.is_grid else (1, layout.num_tokens // layout.frames)
    group, source = (x.to(tokens.features.device, non_blocking=True) for x in stretches(layout.frames, grid, k))
    batch = len(tokens.features)
    return Reduction.merge(group.expand(batch, -1), source.expand(batch, -1), positions=method.positions, covers=True)


@lru_cache(maxsize=64)
def stretches(frames: int, grid: tuple[int, int], k: int) -> tuple[Tensor, Tensor]:
    """Row (T * N,) and source (k,) of the tokens of ``frames`` frames of a ``grid``."""
    n = grid[0] * grid[1]
    if k < n:
        region, centre = grid_partition(*grid, k)
        return region.repeat(frames), torch.clone(centre)
    place, time = torch.arange(n), torch.arange(frames)[:, None]
    count = k // n + ((place + 1) * (k % n) // n - place * (k % n) // n)
    return by_first((time * count // frames * n + place).flatten())
