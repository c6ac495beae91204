"""ID-Selection: take the most important token, lower the scores of its look-alikes, repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.suppressed_selection import suppressed_selection
from tokenreduce.method import Method, Step
from tokenreduce.methods.divprune import in_order_of_choice
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice, in_range, whole


@dataclass(frozen=True, kw_only=True)
class IDSelection(Method):
    """Take the token of highest score S; every other one loses S exp(-gamma d^2), d its cosine distance; K times.

    Attributes:
        keep: fraction of N, or count per image; tiles and frames get their share.
        gamma: how alike a token must be to be suppressed, at least 0: at gamma 20 a cosine of 0.95 costs 95 % of the score
            taken, 0.8 45 %, 0.5 less than 1 %. Large values choose plainly by importance.
        normalise: scale importance to [0, 1] per image first.
        floor: ``zero``: scores stop at 0 (both published ports); ``none``: the formula as it is reported, whose order loses
            its meaning once the best score left is negative.
        exhausted: once nothing is left above 0, go on by importance (``score``) or by index (``index``, as the ports do,
            which takes the upper rows of the picture).
        score: importance: ``cls``, [CLS] attention of the feature block; ``global_mean``, attention received there; None:
            the first, or for towers without a [CLS] token the second. ``cross_modal``: attention of the prompt's last token
            in decoder ``layer``, in front of which tokens are then chosen, by their states there; ``unified``: the mean of
            that and the first two, each scaled to [0, 1].
        layer: decoder layer (0-based) of the last two; the ports use 2.

    Source: "ID-Selection: Importance-Diversity Based Visual Token Selection for Efficient LVLM Inference", 2026,
        arXiv 2604.05601, equations 7 to 9 (no release read; the formulas as two independent ports quote them).
    Departures: float32; ties go to the lowest index; ``exhausted``; the formula of ``unified`` is ours.
    """

    name = "id_selection"
    title = "important, and unlike what was taken"
    paper = "arXiv 2604.05601"
    stages = ("projector", "llm")
    looks_at = "[CLS] attention of the feature block or of the prompt's last token, cosine distances of the tokens"
    sees = "frame"

    gamma: float = 20.0
    normalise: bool = True
    floor: Literal["zero", "none"] = "zero"
    exhausted: Literal["score", "index"] = "score"
    score: Score | Literal["cross_modal", "unified"] | None = None
    layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("gamma", self.gamma, 0.0, math.inf)
        choice("floor", self.floor, ("zero", "none"))
        choice("exhausted", self.exhausted, ("score", "index"))
        choice("score", self.score, (*SCORES, "cross_modal", "unified"))
        whole("layer", self.layer, 0, ", of decoder layers. The ports use 2.")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        asking = (LastQueryAttention(self.layer, ahead=True),)
        if self.score == "cross_modal":
            return (Step("llm", self.layer, asking),)
        looking = (saliency(self.name, facts, facts.feature_block, self.of_tower),)
        return (
            Step("llm", self.layer, looking + asking) if self.score == "unified" else Step("projector", needs=looking),
        )

    @property
    def of_tower(self) -> Score | None:
        """What the tower is asked for, where it is."""
        return None if self.score == "unified" or self.score == "cross_modal" else self.score

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return () if self.score == "cross_modal" else saliency_substitute(facts, self.of_tower)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        importance, *more = tokens.signals.values()
        if more:
            importance = (normalised(importance) + normalised(more[0])) / 2
        taken, _ = self.take(tokens.features, importance, self.budget.count(tokens.num_tokens))
        return in_order_of_choice(taken, tokens.num_tokens, self)

    def take(self, x: Tensor, importance: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(B, k) tokens of ``x`` (B, N, D) in the order taken, by ``importance`` (B, N), and the score each had then."""
        score = normalised(importance) if self.normalise else importance.float()
        least = 0.0 if self.floor == "zero" else -math.inf
        taken, value = suppressed_selection(x, score, k, gamma=self.gamma, least=least)
        if self.floor == "none" or self.exhausted == "index":
            return taken, value
        return by_importance_when_exhausted(taken, value, importance)


def normalised(importance: Tensor) -> Tensor:
    """(B, N) float32: ``importance`` scaled to [0, 1] per image; unchanged where all tokens are worth the same."""
    score = importance.float()
    low, high = score.amin(dim=1, keepdim=True), score.amax(dim=1, keepdim=True)
    wide = high - low > 1e-9
    return torch.where(wide, (score - low) / (high - low).clamp_min(1e-9), score)


def by_importance_when_exhausted(taken: Tensor, value: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """``taken`` (B, K) with everything that was taken at ``value`` 0 replaced by the most important tokens left."""
    meant = value > 0  # values only fall, so these come first
    place = torch.arange(taken.shape[1], device=taken.device)
    gone = torch.zeros_like(importance, dtype=torch.bool).scatter_(1, taken, meant)
    left = importance.float().masked_fill(gone, -math.inf).sort(dim=1, descending=True, stable=True).indices
    after = (place - meant.sum(dim=1, keepdim=True)).clamp_min(0)
    return torch.where(meant, taken, left.gather(1, after)), value
