"""Baseline: the first visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class First(Method):
    """Keep the first K tokens in raster order: the top of the picture, or of each tile, or of each frame.

    A control: what a method gains over it is not a matter of where tokens lie.
    """

    name = "first"
    title = "the first tokens"
    stages = ("projector",)
    looks_at = "nothing"
    sees = "frame"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector"),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        batch, n = tokens.features.shape[:2]
        index = torch.arange(self.budget.count(n), device=tokens.features.device).expand(batch, -1)
        return Reduction.select(index, n, positions=self.positions)
