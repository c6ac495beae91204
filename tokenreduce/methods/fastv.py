"""FastV: after decoder layer K, drop the visual tokens the last prompt token ignores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, LastQueryAttention, Signal
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Rank visual tokens once, during prefill, by their attention in layer ``layer - 1``; layers from ``layer`` on run
    on the best ones. Earlier layers and their KV cache stay full.

    Attributes:
        keep: fraction of N, or count per image, from layer ``layer`` on. (The paper's R is the share removed.)
        layer: number of decoder layers that still see every token (the paper's K), at least 1.
        query: ``last``, the row of the last prompt token (the released code, used for the published tables), or
            ``all``, attention averaged over all queries (the paper's wording).

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764, section 4.1.
    Departures from the release: ranking happens once (the cached form), the probed layer runs once and on its own
        attention kernel, spans are looked up instead of being constants.
    """

    name = "fastv"
    title = "drop what the last prompt token ignores"
    paper = "arXiv 2403.06764"
    stages = ("llm",)
    looks_at = "attention of decoder layer K-1"

    layer: int = 2
    query: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("query", self.query, ("last", "all"))
        whole("layer", self.layer, 1, ", the number of decoder layers that still see every token. The paper uses 2.")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if self.layer >= facts.decoder_depth:
            raise ValueError(
                f"layer={self.layer} leaves no decoder layer to shorten; this model has {facts.decoder_depth}, "
                f"allowed: 1 to {facts.decoder_depth - 1}"
            )
        before = self.layer - 1
        signal: Signal = LastQueryAttention(before) if self.query == "last" else AttentionReceived(before, "llm")
        return (Step("llm", layer=self.layer, needs=(signal,)),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        return Reduction.top(score, self.budget.count(tokens.num_tokens), positions=self.positions)
