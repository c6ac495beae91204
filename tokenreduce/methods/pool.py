"""Baseline: average pooling of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenreduce.method import Method, Step
from tokenreduce.methods.uniform import regions
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Replace each of K near-square regions that tile the image by its mean, placed at the region's central token.

    In a vision tower by itself, rows are averaged in the first block, between attention and MLP; [CLS] and registers stay.
    """

    name = "pool"
    title = "average pooling"
    stages = ("encoder", "projector")
    looks_at = "nothing"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if "projector" in facts.stages or "encoder" not in facts.stages:
            return (Step("projector"),)
        return (Step("encoder", layer=0, amount=()),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        prefix = torch.arange(tokens.prefix, device=tokens.features.device).expand(len(tokens.features), -1)
        n = tokens.num_tokens - tokens.prefix
        region, centre = regions(tokens, self.budget.count(n))
        if tokens.prefix:
            region, centre = (torch.cat([prefix, x + tokens.prefix], dim=1) for x in (region, centre))
        return Reduction.merge(region, centre, weight=tokens.size, positions=self.positions)
