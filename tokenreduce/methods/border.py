"""Baseline: the visual tokens along the border."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.place_controls import ByPlace
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Border(ByPlace):
    """Keep the K tokens nearest to an edge of the picture, or of each tile, or of each frame; of equal ones the first.

    A control: photographs show what matters in the middle, so a method should beat it with ease; where it does not, its scores
    say little.
    """

    name = "border"
    title = "tokens along the border"

    def place(self, tokens: VisualTokens) -> Tensor:
        edge = distance_to_edge(tokens.layout).to(tokens.features.device, non_blocking=True)
        return -edge[tokens.source.clamp_min(0)].masked_fill(tokens.source < 0, torch.inf)


def distance_to_edge(layout: Layout) -> Tensor:
    """(N,) float, cells between each token and the nearest edge of its grid."""
    cell = torch.tensor(layout.cells) if layout.cells is not None else torch.arange(layout.num_tokens)
    place = cell % (layout.height * layout.width)
    row, column = place // layout.width, place % layout.width
    sides = torch.stack([row, layout.height - 1 - row, column, layout.width - 1 - column])
    return sides.amin(dim=0).float()
