"""PromptDistill: after some decoder layers, keep the visual tokens whose keys fit the query of the last prompt token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import scaled_layers
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import ascending, choice, is_numbers

WINDOW = 5  # tokens in a row
SIDE = 3  # of a window on the grid


@dataclass(frozen=True, kw_only=True)
class PromptDistill(Method):
    """After the decoder layers ``layers`` rank visual tokens by the product of their key with the query of the last prompt
    token, mean over heads and no softmax, averaged over neighbours; deeper layers run on the best.

    Attributes:
        keep: fraction, or count per image, of the tokens that enter the language model, left after the last of ``layers``.
        layers: decoder layers (0-based) after which tokens are selected; None: 13, scaled from 32 layers to the depth.
        stage_keep: the same as ``keep`` for all selections but the last; None: a geometric sequence.
        pool: neighbours over which scores are averaged: ``flat5``, five tokens in a row; ``grid3``, 3 x 3 cells of the grid; or
            None. Places outside the image, and cells whose token is gone, count as zero.
        truncate: selections, from the first one on, up to which the caches of the layers before them are cut as well, to what
            survives the last of these; 0: none, -1: all.

    Source: Jin et al., "PromptDistill: Query-based Selective Token Retention in Intermediate Layers for Efficient Large
        Language Model Inference", 2025, arXiv 2503.23274; layers and pooling as in the authors' code.
    Departures from the release, which knows text alone: visual tokens only are candidates, each image by itself; pooling does
        not reach beyond them; any padding.
    """

    name = "promptdistill"
    title = "keep what fits the last prompt token's query"
    paper = "arXiv 2503.23274"
    stages = ("llm", "cache")
    looks_at = "products of keys with the last query, decoder layer z"

    layers: tuple[int, ...] | None = None
    stage_keep: tuple[float | int, ...] | None = None
    pool: Literal["flat5", "grid3"] | None = "flat5"
    truncate: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("pool", self.pool, ("flat5", "grid3", None))
        if self.layers is not None:
            ascending("layers", self.layers, 0, "The paper uses (13,) of 32.")
        selections = len(self.layers or (13,))
        if self.stage_keep is not None:
            if not is_numbers(self.stage_keep) or len(self.stage_keep) != selections - 1:
                raise ValueError(
                    f"stage_keep={self.stage_keep}; allowed: {selections - 1} fractions or counts, one per selection "
                    "but the last, which keep= says"
                )
            for keep in self.stage_keep:
                Budget(keep)
        choice("truncate", self.truncate, (*range(-1, selections + 1),))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.decoder_depth
        layers = self.layers or scaled_layers((13,), 32, depth, last=max(depth - 2, 0))
        if layers[-1] > depth - 2:
            raise ValueError(
                f"layers={layers} of a language model of {depth} layers; allowed: 0 to {depth - 2}, layers that another follows"
            )
        cut = len(layers) if self.truncate == -1 else self.truncate
        steps = [
            Step("llm", layer=z + 1, needs=(LastQueryAttention(z, softmax=False),), amount=i)
            for i, z in enumerate(layers)
        ]
        if cut:
            steps.append(Step("cache", layer=0, through=layers[cut - 1], survivors_of=layers[cut - 1] + 1))
        return tuple(steps)

    def is_identity(self, n: int) -> bool:
        return super().is_identity(n) and all(Budget(keep).count(n) >= n for keep in self.stage_keep or ())

    def count(self, n: int, selection: int) -> int:
        """Tokens left by ``selection`` (0-based) of the ``n`` that entered."""
        total, last = len(self.layers or (13,)), self.budget.count(n)
        if selection == total - 1:
            return last
        if self.stage_keep is not None:
            return Budget(self.stage_keep[selection]).count(n)
        return round(n * (last / n) ** ((selection + 1) / total))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (logits,) = tokens.signals.values()
        k = min(self.count(tokens.entered, tokens.amount), tokens.num_tokens)
        if self.pool == "flat5":
            logits = F.avg_pool1d(logits.float()[:, None], WINDOW, stride=1, padding=WINDOW // 2)[:, 0]
        elif self.pool == "grid3":
            logits = smoothed(logits.float(), tokens.source, tokens.layout)
        return Reduction.top(logits, k, positions=self.positions)


def smoothed(score: Tensor, source: Tensor, layout: Layout) -> Tensor:
    """``score`` (B, N) of tokens that sit at ``source`` (B, N) of ``layout``, averaged over 3 x 3 cells of each grid.

    A window always counts nine cells: those outside the grid, or without a token, are zero. A summary, which sits nowhere
    (-1), keeps its score.
    """
    batch = len(score)
    whole = score.new_zeros(batch, layout.num_tokens + 1)
    whole.scatter_(1, torch.where(source < 0, layout.num_tokens, source), score)
    found = torch.zeros_like(whole)
    for part, own in layout.split("frame"):
        index, cells = (uploaded(x, score.device) for x in (own, part.patches))
        grid = score.new_zeros(batch, part.height * part.width)
        grid[:, cells] = whole[:, index]
        mean = F.avg_pool2d(grid.unflatten(1, (part.height, part.width)), SIDE, stride=1, padding=SIDE // 2)
        found[:, index] = mean.flatten(1)[:, cells]
    return torch.where(source < 0, score, found.gather(1, source.clamp_min(0)))
