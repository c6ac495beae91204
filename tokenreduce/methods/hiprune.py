"""HiPrune: anchors, buffers and registers from hierarchical encoder attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenreduce.anchors_and_registers import select, with_closest
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, Hidden, Text
from tokenreduce.text_relevance import cosine_to_text
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range, whole


@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """Keep the most attended tokens of a middle block (anchors), their four neighbours (buffers) and, up to the exact
    budget, the most attended remaining tokens of the block that yields the features (registers).

    Attributes:
        keep: fraction of N, or count T per image.
        alpha: upper bound of the share of anchors and buffers, in [0, 1]; ``round(alpha * T / 5)`` anchors.
        object_layer: middle block counted from 1 as in the paper; None scales 9 of 24 to the depth of the tower;
            where most blocks attend within windows, the one nearest to the middle that does not (the release: 16 of 32).
        border: ``clamp`` as released (a neighbour beyond a row end is the next token in raster order, one beyond the
            grid the first or last token), or ``drop``, which skips neighbours outside the grid.
        variant: ``plusplus`` (HiPrune++) adds ``round(beta * T)`` tokens of those that are left, closest to the text of the
            prompt by the cosine of embeddings: T (1 + beta) in all.
        parity: ``paper`` fills the budget exactly; ``release`` excludes chosen tokens by subtracting 1 from their
            score, which on towers whose scores exceed 1 (2x2-merged) can lose tokens.
        positions: the LLaVA release renumbers, the Qwen release keeps; the default keeps position ids.

    Source: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language
        Models", 2025, arXiv 2508.00553, section 4.
    Departures from the release: budget per image, never shared between samples; when alpha is so high that anchors and
        buffers overflow the budget, buffers of the lowest object score are dropped (the release raises).
    """

    name = "hiprune"
    title = "anchors, buffers, registers"
    paper = "arXiv 2508.00553"
    stages = ("projector",)
    looks_at = "attention received in a middle and in the feature block"
    sees = "frame"

    alpha: float = 0.1
    object_layer: int | None = None
    border: Literal["clamp", "drop"] = "clamp"
    variant: Literal["plusplus"] | None = None
    beta: float = 0.1
    parity: Literal["paper", "release"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("alpha", self.alpha, 0.0, 1.0)
        choice("border", self.border, ("clamp", "drop"))
        choice("parity", self.parity, ("paper", "release"))
        more = ": a vision block counted from 1. The paper uses 9 of 24."
        whole("object_layer", self.object_layer, 1, more, none=True)
        choice("variant", self.variant, (None, "plusplus"))
        in_range("beta", self.beta, 0.0, 1.0)
        if self.variant and self.parity == "release":
            raise ValueError(
                "variant='plusplus' with parity='release', which has no such variant; allowed: parity='paper'"
            )

    def most(self, n: int) -> int:
        k = self.budget.count(n)
        return min(n, k + int(2 * self.beta * k)) if self.variant else k  # each view rounds by itself

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        layer = self.object_layer or default_object_layer(facts)
        if not 1 <= layer <= facts.feature_block + 1:
            raise ValueError(
                f"object_layer={layer} is outside [1, {facts.feature_block + 1}], the vision blocks up to the one that "
                "yields the features, counted from 1"
            )
        text = (Hidden(), Text()) if self.variant else ()
        return (Step("projector", needs=(AttentionReceived(layer - 1), AttentionReceived(facts.feature_block), *text)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        scores = [x for signal, x in tokens.signals.items() if isinstance(signal, AttentionReceived)]
        n = tokens.num_tokens
        k = self.budget.count(n)
        plan = select(
            scores[0],
            scores[-1],
            k,
            tokens.source,
            tokens.layout,
            alpha=self.alpha,
            border=self.border,
            parity=self.parity,
            positions=self.positions,
        )
        if not self.variant:
            return plan
        close = cosine_to_text(tokens.signals[Hidden()], tokens.signals[Text()])
        return with_closest(plan, close, min(round(self.beta * k), n - k))


def default_object_layer(facts: ModelFacts) -> int:
    """9 of the 24 blocks of CLIP-L; in a tower of windows the block nearest to the middle that sees the whole image."""
    if facts.full_blocks:
        return min(facts.full_blocks, key=lambda block: (abs(block + 1 - facts.tower_depth / 2), block)) + 1
    return max(1, round(9 / 24 * facts.tower_depth))
