"""Baseline: average pooling of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.method import Method
from tokenreduce.methods.uniform import regions
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Replace each of K near-square regions that tile the image by its mean, placed at the region's central token."""

    name = "pool"
    title = "average pooling"
    stages = ("projector",)
    looks_at = "nothing"

    def reduce(self, tokens: VisualTokens) -> Reduction:
        region, centre = regions(tokens, self.budget.count(tokens.num_tokens))
        return Reduction.merge(region, centre, weight=tokens.size, positions=self.positions)
