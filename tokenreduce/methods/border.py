"""Baseline: the visual tokens along the border."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenreduce.layout import Layout
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Border(Method):
    """Keep the K tokens nearest to an edge of the picture, or of each tile, or of each frame; of equal ones the first.

    A control: photographs show what matters in the middle, so a method should beat it with ease; where it does not, its scores
    say little.
    """

    name = "border"
    title = "tokens along the border"
    stages = ("projector",)
    looks_at = "nothing"
    sees = "frame"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector"),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        n = tokens.num_tokens
        edge = distance_to_edge(tokens.layout).to(tokens.features.device)
        score = -edge[tokens.source.clamp_min(0)].masked_fill(tokens.source < 0, torch.inf)
        return Reduction.top(score, self.budget.count(n), positions=self.positions)


def distance_to_edge(layout: Layout) -> torch.Tensor:
    """(N,) float, cells between each token and the nearest edge of its grid."""
    cell = torch.tensor(layout.cells) if layout.cells is not None else torch.arange(layout.num_tokens)
    place = cell % (layout.height * layout.width)
    row, column = place // layout.width, place % layout.width
    sides = torch.stack([row, layout.height - 1 - row, column, layout.width - 1 - column])
    return sides.amin(dim=0).float()
