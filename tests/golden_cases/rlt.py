"""RLT: frames cut into units of one patch, normalised pixels as they come, runs counted from what is kept."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.methods.rlt import RLT
from tokenreduce.provenance import run_lengths
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    frames, side, tubelet = inputs["frames"], params["patch"], params["tubelet"]
    clips, time, channels, height, width = frames.shape
    layout = Layout(height // side, width // side, frames=time // tubelet, medium="video")
    units = frames.view(clips, -1, tubelet, channels, layout.height, side, layout.width, side)
    values = units.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(clips, layout.num_tokens, -1)
    method = RLT(threshold=params["threshold"], deviation=(1.0,) * channels)
    unit = PixelUnit(1, channels, tubelet, side, side)
    plan = method.reduce(VisualTokens(values, layout, stage="pixels", amount=unit))
    kept = plan.assign >= 0
    lengths = [run_lengths(row, layout) for row in kept]
    by_place = []
    for row, found in zip(kept, lengths):
        grid = torch.zeros(layout.num_tokens, dtype=torch.long)
        grid[row] = found
        grid = grid.view(layout.frames, -1).T.flatten()
        by_place.append(grid[grid > 0])
    return {
        "mask": kept.long(),
        "keep": torch.cat([row.nonzero()[:, 0] for row in kept]),
        "counts": kept.sum(dim=1),
        "lengths": torch.cat(lengths),
        "lengths_reference": torch.cat(by_place),
    }
