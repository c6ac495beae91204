"""VideoLLM-MoD: in some decoder layers a router lets most visual tokens pass by, and they join again behind the layer."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from tokenreduce.learned_method import LearnedMethod
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole


class Routers(nn.Module):
    """A line through the hidden state for each decoder layer that tokens pass by: (B, N, width) -> (B, N, 1)."""

    def __init__(self, layers: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.routers = nn.ModuleDict({str(layer): nn.Linear(width, 1, bias=False) for layer in layers})
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02 / width**0.5)


@dataclass(frozen=True, kw_only=True)
class VideoLLMMoD(LearnedMethod):
    """In every second decoder layer a router scores visual tokens; the best are processed with all text, others pass by.

    What a layer adds to a visual token of score r is multiplied by 1 + r, so that the router learns by it.

    Attributes:
        keep: visual tokens that such a layer takes in, as a fraction or a count per image; the paper's is 0.2.
        every: distance of these layers; the first is ``every`` - 1 (0-based). None: as the weights say; new ones have 2.

    Source: Wu et al., "VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision Computation", NeurIPS 2024,
        arXiv 2408.16730; the router is that of Raposo et al., "Mixture-of-Depths", arXiv 2404.02258, equation 1.
    Departures from the paper: 1 + r in place of r, since the language model is frozen; the best of a picture, not of a frame.
    """

    name = "videollm_mod"
    title = "most visual tokens pass by every second layer, by a router"
    paper = "arXiv 2408.16730"
    stages = ("llm",)
    counts_at = "passed_by"
    looks_at = "hidden states, every second decoder layer"
    shaped_by = MappingProxyType({"every": 2})  # as in the paper

    keep: float | int | str | None = 0.2
    every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("every", self.every, 2, ", which is every second layer, as in the paper", none=True)
        choice("positions", self.positions, ("keep",))

    def routed(self, facts: ModelFacts) -> tuple[int, ...]:
        """The decoder layers that tokens pass by."""
        every = self.shape["every"]
        return tuple(range(every - 1, facts.decoder_depth, every))

    def module(self, facts: ModelFacts) -> nn.Module:
        return Routers(self.routed(facts), facts.decoder_width)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        layers = self.routed(facts)
        if not layers:
            raise ValueError(
                f"every={self.shape['every']} of a language model of {facts.decoder_depth} layers; allowed: 2 to "
                f"{facts.decoder_depth}"
            )
        return tuple(Step("llm", layer=layer, when="layer") for layer in layers)

    def most(self, n: int) -> int:
        return n  # all are there again behind the last layer

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.learned is not None, "made when the model was wrapped"
        router = tokens.learned.part(f"routers.{tokens.layer}", tokens.features)
        weight = next(router.parameters())
        score = torch.nn.functional.linear(tokens.features.float(), weight.float())[..., 0]
        return Reduction.top(score.detach(), self.budget.count(tokens.num_tokens), weight=1 + score)
