"""DivPrune: keep the tokens that are farthest from one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.greedy_selection import max_min_selection
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Keep the K tokens whose smallest cosine distance among each other is as large as a greedy search finds: first the one
    farthest from its nearest neighbour, then always the one farthest from all taken so far.

    Attributes:
        keep: fraction of N, or count per image.
        scope: candidates of one choice: the whole ``image``, all its tiles or frames together (the release), or each ``view``
            (tile or frame) by itself with its share of the budget.
        output_order: ``raster``, or the ``reference`` order in which tokens were taken, ids renumbered (behind the published
            figures; sorting was added for the release and scores slightly better).
        positions: policy of position ids in ``raster`` order.

    Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
        arXiv 2503.02175, section 3.
    Departures from the release: distances are float32; no token is taken twice, however many duplicates there are; row
        newlines stay and are no candidates; each image of a batch is chosen from by itself.
    """

    name = "divprune"
    title = "the most diverse tokens (max-min)"
    paper = "arXiv 2503.02175"
    stages = ("projector",)
    looks_at = "cosine distances of the tokens"

    scope: Literal["image", "view"] = "image"
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("scope", self.scope, ("image", "view"))
        choice("output_order", self.output_order, ("raster", "reference"))

    @property
    def sees(self) -> Literal["image", "frame"]:  # type: ignore[override]  # a parameter decides
        return "image" if self.scope == "image" else "frame"

    def reduce(self, tokens: VisualTokens) -> Reduction:
        taken = max_min_selection(tokens.features, self.budget.count(tokens.num_tokens))
        return in_order_of_choice(taken, tokens.num_tokens, self)


def in_order_of_choice(taken: Tensor, n: int, method: Method) -> Reduction:
    """Keep the tokens ``taken`` (B, K) of ``n``, ranked by when they were taken, in the ``output_order`` of ``method``."""
    rank = torch.arange(taken.shape[1], 0, -1, device=taken.device, dtype=torch.float32).expand_as(taken)
    score = torch.zeros(len(taken), n, device=taken.device).scatter_(1, taken, rank)
    plan = Reduction.select(taken, n, score=score, positions=method.policy)
    return plan if method.output_order == "raster" else plan.reordered(taken)
