"""A learned selector: a small predictor scores the projected tokens, and the best stay."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tokenreduce.learned_method import LearnedMethod
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.relaxed_selection import relaxed
from tokenreduce.signals import Text
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import truth, whole

TEXT = Text("all", special=False)


class Predictor(nn.Module):
    """A score for each token: of its own row, of the mean over the picture and, where it ``asks``, of the question's."""

    def __init__(self, width: int, hidden: int, asks: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, hidden)
        self.question = nn.Linear(width, hidden, bias=False) if asks else None
        self.second = nn.Linear((3 if asks else 2) * hidden, 1)

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        """(B, N) of tokens (B, N, D) and, where it asks, the mean of the question's (B, D)."""
        local = nn.functional.gelu(self.first(self.norm(x)))
        together = [local, local.mean(dim=1, keepdim=True).expand_as(local)]
        if self.question is not None and text is not None:
            asked = self.question(nn.functional.layer_norm(text, text.shape[-1:]))
            together.append(asked[:, None] * local)
        score: Tensor = self.second(torch.cat(together, dim=-1))[..., 0]
        return score


@dataclass(frozen=True, kw_only=True)
class LearnedSelector(LearnedMethod):
    """Keep the K tokens that a predictor of two layers scores highest, trained on what the model answers with all tokens.

    Attributes:
        keep: fraction, or count per image, of the tokens that stay.
        hidden: width of the predictor; ``asks``, whether it reads the text of the prompt, too. None: as the weights say; new
            ones have 64, and read the picture alone.

    Source: in the manner of the image predictor of Huang et al., "Dynamic-LLaVA: Efficient Multimodal Large Language Models
        via Dynamic Vision-language Context Sparsification", ICLR 2025, arXiv 2412.00876.
    Departures from the paper: the language model stays frozen; the predictor is smaller; an exact number of tokens stays;
        how it is trained is a choice (``tr.train``); the text of the prompt may be read. Not part of it: the predictor
        of output tokens.
    """

    name = "learned_selector"
    title = "what a trained predictor scores highest"
    paper = "arXiv 2412.00876"
    stages = ("projector",)
    looks_at = "features, text of the prompt where asked"
    shaped_by = MappingProxyType({"hidden": 64, "asks": False})

    hidden: int | None = None
    asks: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("hidden", self.hidden, 1, ", the width of the predictor", none=True)
        truth("asks", self.asks, none=True)

    def module(self, facts: ModelFacts) -> nn.Module:
        return Predictor(facts.decoder_width, self.shape["hidden"], self.shape["asks"])

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector", needs=(TEXT,) if self.shape["asks"] else ()),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        learned, x = tokens.learned, tokens.features
        assert learned is not None, "a pipeline makes it"
        text = tokens.signal(TEXT).mean() if self.shape["asks"] else None
        if learned.training:
            x = x.float()
        score = learned.part("", x)(x, None if text is None else text.to(x.dtype)).float()
        k = self.budget.count(tokens.num_tokens)
        if learned.training:
            return relaxed(tokens, score, k, learned)
        return Reduction.top(score, k, positions=self.positions)
