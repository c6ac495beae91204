"""VTC-CLS: keep the patches that [CLS] attends to most over several blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice, whole

ENSEMBLES: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


@dataclass(frozen=True, kw_only=True)
class VTCCLS(Method):
    """Keep the K patches with the highest head-averaged [CLS] attention, summed over the last third of the blocks up to the
    one that yields the features.

    Attributes:
        keep: fraction of N, or count per image; tiles and frames get their share.
        start: first block (0-based) that counts; None scales 16 of 24 to the depth of the tower. The block of the features
            alone is FasterVLM's score.
        ensemble: ``sum`` over blocks (the paper; ``mean`` ranks alike), ``max`` or ``min``.
        heads: reduce the heads by ``mean`` (the paper) or ``max``.
        score: ``cls``, the paper's; ``global_mean``, attention received from all queries, in the blocks where every patch
            sees the whole image; None: the paper's, or for towers without a [CLS] token the mean.

    Source: Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024, arXiv 2412.05819.
    Departures from the release: any number of images and tiles; position ids are kept; scores are float32 and ties go to the
        lowest index; the projector runs on all patches.
    """

    name = "vtc_cls"
    title = "[CLS] attention over several blocks"
    paper = "arXiv 2412.05819"
    stages = ("projector",)
    looks_at = "[CLS] attention of the last third of the blocks"
    sees = "frame"

    start: int | None = None
    ensemble: Literal["sum", "mean", "max", "min"] = "sum"
    heads: Literal["mean", "max"] = "mean"
    score: Score | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("ensemble", self.ensemble, tuple(ENSEMBLES))
        choice("heads", self.heads, ("mean", "max"))
        choice("score", self.score, SCORES)
        whole("start", self.start, 0, ": a vision block counted from 0. The paper uses 16 of 24.", none=True)

    def blocks(self, facts: ModelFacts) -> list[int]:
        """The blocks that count, up to the one that yields the features."""
        last = facts.feature_block
        start = min(round(2 / 3 * facts.tower_depth), last) if self.start is None else self.start
        if start > last:
            raise ValueError(
                f"start={start} is outside [0, {last}], the vision blocks up to the one that yields the features"
            )
        found = list(range(start, last + 1))
        if facts.full_blocks is None or (facts.has_cls and self.score != "global_mean"):
            return found
        return [block for block in found if block in facts.full_blocks] or [last]

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        needs = (saliency(self.name, facts, block, self.score, self.heads) for block in self.blocks(facts))
        return (Step("projector", needs=tuple(needs)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return saliency_substitute(facts, self.score)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        score = ensemble(list(tokens.signals.values()), self.ensemble)
        return Reduction.top(score, self.budget.count(tokens.num_tokens), positions=self.positions)


def ensemble(scores: list[Tensor], how: str = "sum") -> Tensor:
    """(B, N) float32 of the scores (B, N) of each block."""
    return ENSEMBLES[how](torch.stack([score.float() for score in scores]), dim=0)
