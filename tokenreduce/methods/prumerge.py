"""PruMerge and PruMerge+: patches whose attention stands out absorb their nearest, and one more token sums up the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tokenreduce.kernels.rows import take_rows
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.outlier_absorption import absorb, by_count, by_outliers
from tokenreduce.projector_rows import in_front, rows_of, rows_substitute
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention, Keys, ProjectorInput, Signal
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """Every patch whose attention is an outlier, as box plots draw them, becomes a token and adds to itself, by their
    attention, the patches of most similar keys; one token more sums up all that did not.

    Attributes:
        keep: ``auto``, as many as there are outliers, and one; with bounds ``auto:16-128``. A fraction of N, or a count T:
            the T - 1 most attended, or with ``plus`` at most T / 2 of the outliers and an even grid.
        plus: add an even grid of patches (PruMerge+), the wider the more outliers there are.
        neighbours: patches that each of them absorbs, at least 1; kept ones are among them.
        normalise: means, as in the paper's text, instead of the sums of the release.
        parity: ``paper``; or ``release``, which turns the share of outliers into a number again and at some N loses one.
        attention_block: tower block (0-based) of attention and keys; None: the last.
        before_projector: as for ``VisionZip``.
        output_order: ``raster``, or the ``reference`` order, by falling attention and then along the grid.

    Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
        arXiv 2403.15388.
    Departures from the release: at least one outlier; a grid of step 1 where it would divide by zero; images of a batch each
        by itself; numbers of tokens are ours, the paper has none. See the page.
    """

    name = "prumerge"
    title = "outliers absorb their nearest"
    paper = "arXiv 2403.15388"
    stages = ("projector",)
    looks_at = "[CLS] attention and keys of the last block, rows before the projector"
    sees = "frame"
    adapts = True

    keep: float | int | str = "auto"
    plus: bool = False
    neighbours: int = 32
    normalise: bool = False
    parity: Literal["paper", "release"] = "paper"
    attention_block: int | None = None
    before_projector: bool | None = None
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("parity", self.parity, ("paper", "release"))
        choice("output_order", self.output_order, ("raster", "reference"))
        whole("neighbours", self.neighbours, 1, ". The paper uses 32.")
        whole("attention_block", self.attention_block, 0, ", a block of the tower", none=True)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        block = facts.tower_depth - 1 if self.attention_block is None else self.attention_block
        before = in_front(facts, self.before_projector)
        score: Signal = ClsAttention(block, "joined") if facts.has_cls else AttentionReceived(block, heads="joined")
        rows = (ProjectorInput(),) if before else ()
        return (Step("projector", needs=(score, Keys(block, "joined"), *rows), amount=before),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        received = "attention received from all tokens in place of [CLS] attention: the vision tower has no [CLS] token"
        return (() if facts.has_cls else (received,)) + rows_substitute(facts, self.before_projector)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        score, keys = list(tokens.signals.values())[:2]
        rows, project = rows_of(tokens, tokens.amount)
        n = tokens.num_tokens
        if not self.budget.adapts and self.budget.count(n) >= n:
            return Reduction.identity(tokens, positions=self.policy)
        if self.budget.adapts:
            order, count = by_outliers(score, self.plus, self.parity)
            count = self.budget.limit(count + 1, n) - 1
            most = int(count.max())
        else:
            most = self.budget.count(n) - 1
            order, count = by_count(score, most, self.plus)
        made = absorb(score, keys, rows, order, count, most, self.neighbours, self.normalise)
        features = project(made.rows).to(tokens.features.dtype)
        place = torch.arange(made.source.shape[1], device=score.device).expand_as(made.source)
        if self.output_order == "raster":
            place = torch.where(made.source < 0, n, made.source)
        rank = place.masked_fill(~made.valid, n + 1).sort(dim=1, stable=True).indices
        valid = made.valid.gather(1, rank)
        k = max(most, 1) + (most > 0)
        assign = rank.argsort(dim=1).gather(1, made.assign.clamp_min(0))
        return Reduction(
            source=made.source.gather(1, rank)[:, :k],
            assign=torch.where(made.assign < 0, made.assign, assign),
            features=take_rows(features, rank[:, :k]),
            positions=self.policy,
            score=score,
            valid=valid[:, :k] if self.budget.adapts else None,
        )
