"""VisionZip: the tokens a tower attends to most, and a few that average the rest by the likeness of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.matching import ordered
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.projector_rows import in_front, needs_cls, rows_of, rows_substitute
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.signals import Keys, ProjectorInput, TowerPrefix
from tokenreduce.tokens import VisualTokens
from tokenreduce.tower_saliency import SCORES, Score, saliency, saliency_substitute
from tokenreduce.validation import choice, in_range

ROLES = ("merged", "dominant", "contextual")


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Keep the D most attended tokens (dominant); of the others, take every n-th as a target and let each of the rest join
    the target of most similar key (contextual). D + K tokens come out, each at its own place.

    Attributes:
        keep: fraction of N, or count T = D + K per image, tile or frame. The paper's count includes the [CLS] token.
        contextual: share of T in [0, 1) that averages; the paper's splits (162 + 30, 108 + 20, 54 + 10) are 1 / 6.4.
        merge: ``add_mean``, target plus the mean of what joined it, as released; ``mean`` of all of them, as in the text.
        score: as for ``FasterVLM``.
        before_projector: average what enters the projector, as released; or the tokens' features, as ports do where
            several patches make a token. None: whichever of the two the model is like.
        forward_cls: spend one token of D on the [CLS] row itself, as released; it comes last and sits at no patch.
        output_order: ``raster``, or the ``reference`` order: the [CLS] row, dominant, contextual tokens.

    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
        arXiv 2412.04467, sections 3.2 and 3.3.
    Departures from the release: newlines stay; keys of length 0 are like nothing; means are float32. See the page.
    """

    name = "visionzip"
    title = "dominant and contextual tokens"
    paper = "arXiv 2412.04467"
    stages = ("projector",)
    looks_at = "[CLS] attention and keys of the feature block, rows before the projector"
    sees = "frame"

    contextual: float = 1 / 6.4
    merge: Literal["add_mean", "mean"] = "add_mean"
    score: Score | None = None
    before_projector: bool | None = None
    forward_cls: bool = False
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("contextual", self.contextual, 0.0, 1.0)
        choice("merge", self.merge, ("add_mean", "mean"))
        choice("score", self.score, SCORES)
        choice("output_order", self.output_order, ("raster", "reference"))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        block = facts.feature_block
        needs = [saliency(self.name, facts, block, self.score), Keys(block)]
        if in_front(facts, self.before_projector) or self.forward_cls:
            needs.append(ProjectorInput())
        if self.forward_cls:
            needs_cls(self.name, facts)
            needs.append(TowerPrefix(block))
        return (Step("projector", needs=tuple(needs), amount=in_front(facts, self.before_projector)),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        rows = rows_substitute(facts, self.before_projector)
        return saliency_substitute(facts, self.score) + rows

    def split(self, k: int) -> tuple[int, int]:
        """How many of ``k`` tokens are dominant, and contextual."""
        averages = min(max(1, round(k * self.contextual)), k - 1) if self.contextual else 0
        return k - averages, averages

    def reduce(self, tokens: VisualTokens) -> Reduction:
        score, keys = list(tokens.signals.values())[:2]
        n, cls = tokens.num_tokens, int(self.forward_cls)
        dominant, contextual = self.split(self.budget.count(n))
        best, target, assign = select(score, keys, dominant - cls, contextual)
        rows, project = rows_of(tokens, tokens.amount)
        features = take_rows(tokens.features, best)
        if target.shape[1]:
            made = project(averaged(rows, target, assign - best.shape[1], self.merge))
            features = torch.cat([features, made.to(features.dtype)], dim=1)
        source = torch.cat([best, target], dim=1)
        role = torch.zeros_like(assign).scatter(1, best, 1).scatter(1, target, 2)
        if cls:
            row = tokens.projector(tokens.signal(TowerPrefix(self._block(tokens)))[:, 0, :1]).to(features.dtype)
            features, source = torch.cat([row, features], dim=1), F.pad(source, (1, 0), value=DROPPED)
            assign = torch.where(assign < 0, assign, assign + 1)
        plan = Reduction(
            source=source,
            assign=assign,
            features=features,
            positions=self.policy,
            role=role,
            role_names=ROLES,
            score=score,
        )
        return ordered(plan, self.output_order)

    @staticmethod
    def _block(tokens: VisualTokens) -> int:
        return next(signal.block for signal in tokens.signals if isinstance(signal, TowerPrefix))


def select(score: Tensor, keys: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor, Tensor]:
    """Section 3.2 and 3.3: from scores (B, N) and keys (B, N, d), the dominant tokens (B, D) and the targets (B, K), both
    ascending, and (B, N) the row, of the dominant ones and then the targets, that stands for each token.

    The targets are every ``max(1, R // K)``-th of the R tokens that are not dominant, the first of them included; fewer than
    K where there are fewer. Without targets the others are dropped.
    """
    batch, n = score.shape
    best = top_k(score, dominant).sort(dim=1).values
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
    rest = top_k(-chosen.float(), n)[:, : n - dominant]
    step = max(1, rest.shape[1] // max(contextual, 1))
    target = rest[:, ::step][:, :contextual]
    assign = torch.full((batch, n), DROPPED, dtype=torch.long, device=score.device)
    if target.shape[1]:
        unit = F.normalize(keys.float(), dim=-1)
        assign = (unit @ take_rows(unit, target).mT).argmax(dim=2) + dominant
    rows = torch.arange(dominant + target.shape[1], device=score.device).expand(batch, -1)
    return best, target, assign.scatter(1, torch.cat([best, target], dim=1), rows)


def averaged(rows: Tensor, target: Tensor, group: Tensor, merge: str = "add_mean") -> Tensor:
    """(B, K, C) contextual rows: of ``rows`` (B, N, C), those of the ``target`` (B, K) and of what joined its ``group``
    (B, N), negative for none.
    """
    if merge == "mean":
        return group_mean(rows, group.clamp_min(DROPPED), target.shape[1])
    joined = group.clamp_min(DROPPED).scatter(1, target, DROPPED)
    return take_rows(rows, target) + group_mean(rows, joined, target.shape[1])
