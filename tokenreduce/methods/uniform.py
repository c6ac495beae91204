"""Baseline: an even grid of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.layout import Layout
from tokenreduce.place_controls import Control
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Uniform(Control):
    """Keep the central token of each of K near-square regions that tile the image.

    Attributes:
        at: ``projector``; or ``pixels``: the others' pixels never enter the vision tower. None: the projector, or, in a
            vision tower by itself, the pixels.
    """

    name = "uniform"
    title = "even grid of tokens"
    looks_at = "nothing"

    def reduce(self, tokens: VisualTokens) -> Reduction:
        _, centre = regions(tokens, self.budget.count(tokens.num_tokens))
        return Reduction.select(centre, tokens.num_tokens, positions=self.positions)


def regions(tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
    """(B, N) region of each token behind the prefix, and (B, k) central token of each region.

    A video is tiled as its frames stacked on top of one another; tokens that no longer form a grid, as one row.
    """
    batch, n = len(tokens.features), tokens.num_tokens - tokens.prefix
    layout = tokens.layout if tokens.layout.is_grid and n == tokens.layout.num_tokens else Layout(1, n)
    region, centre = grid_partition(layout.frames * layout.height, layout.width, k)
    device = tokens.features.device
    return region.to(device, non_blocking=True).expand(batch, n), torch.clone(centre).to(
        device, non_blocking=True
    ).expand(batch, k)
