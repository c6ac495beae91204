"""VisPruner: a share of the tokens by attention, the others by what is left when look-alikes are dropped, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.rows import take_rows, unit_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.projector_rows import rows_substitute
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ProjectorInput
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice, in_range, whole

ROLES = ("dropped", "important", "diverse")
TABLE = 4096  # tokens up to which all similarities are computed at once


@dataclass(frozen=True, kw_only=True)
class VisPruner(Method):
    """Keep the most attended tokens; of the rest, sorted by attention, compare every other one with those between and drop
    the ``step`` that resemble one of them most, round after round, until the budget is met.

    Attributes:
        keep: fraction of N, or count T per image, tile or frame.
        important_ratio: share in [0, 1] of T that goes to the most attended tokens, rounded down. The paper uses 0.5, and
            0.75 for 64 of 576.
        step: tokens dropped in a round, at least 1.
        unit: what is chosen from at once: each ``tile`` or frame with its share of the budget, or the whole ``image``.
        score: as for ``FasterVLM``.

    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV
        2025, arXiv 2412.01818.
    Departures from the release: an odd rest, and a diverse part of one or two, are no error; images of a batch are pruned
        each by itself; newlines stay; products are float32; ties go to the lowest index.
    """

    name = "vispruner"
    title = "important and diverse tokens"
    paper = "arXiv 2412.01818v2"
    stages = ("projector",)
    looks_at = "[CLS] attention of the feature block, rows before the projector"

    important_ratio: float = 0.5
    step: int = 8
    unit: Literal["tile", "image"] = "tile"
    score: Score | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("important_ratio", self.important_ratio, 0.0, 1.0)
        choice("unit", self.unit, ("tile", "image"))
        choice("score", self.score, SCORES)
        whole("step", self.step, 1, ", tokens dropped in a round. The paper uses 8.")

    @property
    def sees(self) -> Literal["image", "frame"]:  # type: ignore[override]  # a parameter decides
        return "image" if self.unit == "image" else "frame"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        needs = (saliency(self.name, facts, facts.feature_block, self.score), ProjectorInput())
        return (Step("projector", needs=needs),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return saliency_substitute(facts, self.score) + rows_substitute(facts, True)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        score, rows = tokens.signals.values()
        k = self.budget.count(tokens.num_tokens)
        important, diverse = select(score, rows, k, self.important_ratio, self.step)
        role = torch.zeros_like(tokens.role).scatter(1, important, 1).scatter(1, diverse, 2)
        keep = torch.cat([important, diverse], dim=1)
        return Reduction.select(
            keep, tokens.num_tokens, role=role, role_names=ROLES, score=score, positions=self.positions
        )


def select(score: Tensor, x: Tensor, k: int, important_ratio: float = 0.5, step: int = 8) -> tuple[Tensor, Tensor]:
    """(B, I) and (B, k - I): the most attended of tokens with ``score`` (B, N), by falling score, and of the others those
    whose rows of ``x`` (B, N, C) resemble the rest least, in no particular order.

    How many rounds there are, and how many tokens each drops, follows from N, k and ``important_ratio``.
    """
    n = score.shape[1]
    order, first = top_k(score, n), int(k * important_ratio)
    important, rest = order[:, :first], order[:, first:]
    left = k - first
    if not left:
        return important, rest[:, :0]
    unit = unit_rows(x)
    table = unit @ unit.mT if n <= TABLE else None
    while rest.shape[1] > left:
        drop = min(step, rest.shape[1] - left, rest.shape[1] // 2)
        a, b = rest[:, ::2], rest[:, 1::2]
        if table is None:
            near = take_rows(unit, a) @ take_rows(unit, b).mT
        else:
            near = take_rows(table, a).gather(2, b[:, None].expand(-1, a.shape[1], -1))
        stay = a.gather(1, top_k(near.amax(dim=2), a.shape[1])[:, drop:])
        rest = torch.cat([stay, b], dim=1)
    return important, rest
