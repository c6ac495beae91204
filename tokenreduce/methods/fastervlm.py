"""FasterVLM: keep the patches the [CLS] token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Method):
    """Keep the K patches with the highest head-averaged [CLS] attention in the block that yields the features.

    Attributes:
        keep: fraction of N, or count T per image, tile or frame.
        heads: reduce the heads by ``mean`` (the paper) or ``max`` (an alternative found in the release).
        score: ``cls``, the paper's; ``global_mean``, attention received from all queries; None: the paper's, or for towers
            without a [CLS] token the mean.
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
    score: Score | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("heads", self.heads, ("mean", "max"))
        choice("score", self.score, SCORES)
        if self.score == "global_mean" and self.heads != "mean":
            raise ValueError("heads='max' needs score='cls'; with score='global_mean' leave heads='mean'")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(saliency(self.name, facts, facts.feature_block, self.score, self.heads),)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return saliency_substitute(facts, self.score)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        return select(score, self.budget.count(tokens.num_tokens), positions=self.positions)


def select(score: Tensor, k: int, **more: str) -> Reduction:
    """The ``k`` highest of ``score`` (B, N), in raster order (section 3.2, equation 4)."""
    return Reduction.top(score, k, **more)
