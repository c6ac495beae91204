"""FasterVLM: keep the patches the [CLS] token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention, Signal
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Method):
    """Keep the K patches with the highest head-averaged [CLS] attention in the block that yields the features.

    Attributes:
        keep: fraction of N, or count T per image, tile or frame.
        heads: reduce the heads by ``mean`` (the paper) or ``max`` (an alternative found in the release).
        score: ``cls``, the paper's; ``global_mean``, attention received from all queries, the documented substitute
            for towers without a [CLS] token.
        positions: the release renumbers (``renumber``), which costs grounding accuracy; the default keeps position ids.

    Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", 2024,
        arXiv 2412.01818, section 3.2.
    Departures from the release: ties go to the lowest index; scores are float32; row newlines are kept.
    """

    name = "fastervlm"
    title = "[CLS]-attention pruning"
    paper = "arXiv 2412.01818"
    stages = ("projector",)
    looks_at = "[CLS] attention of the feature block"
    sees = "frame"

    heads: Literal["mean", "max"] = "mean"
    score: Literal["cls", "global_mean"] = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("heads", self.heads, ("mean", "max"))
        choice("score", self.score, ("cls", "global_mean"))
        if self.score == "global_mean" and self.heads != "mean":
            raise ValueError("heads='max' needs score='cls'; with score='global_mean' leave heads='mean'")

    def _signal(self, block: int) -> Signal:
        return ClsAttention(block, self.heads) if self.score == "cls" else AttentionReceived(block)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if self.score == "cls" and not facts.has_cls:
            raise ValueError(
                f"method='fastervlm' scores by [CLS] attention, but the vision tower of this {facts.family} model has "
                "no [CLS] token; use fastervlm with score='global_mean', or 'hiprune', which needs none"
            )
        return (Step("projector", needs=(self._signal(facts.feature_block),)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        return select(score, self.budget.count(tokens.num_tokens), positions=self.positions)


def select(score: Tensor, k: int, **more: str) -> Reduction:
    """The ``k`` highest of ``score`` (B, N), in raster order (section 3.2, equation 4)."""
    return Reduction.top(score, k, **more)
