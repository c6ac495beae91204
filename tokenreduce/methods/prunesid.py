"""PruneSID: groups by principal component, look-alikes suppressed within each, and a share of the budget for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from tokenreduce.by_count import by_count
from tokenreduce.kernels.rows import take_rows
from tokenreduce.matching import ordered
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.principal_groups import select, shares_by_spread, spread
from tokenreduce.projector_rows import in_front, needs_cls, rows_of, rows_substitute
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.signals import ClsAttention, ProjectorInput, TowerPrefix
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range


@dataclass(frozen=True, kw_only=True)
class PruneSID(Method):
    """Put every token into the group of the principal component it loads on most; in each group, take the most salient token,
    set aside those that are too similar to it, and so on; share the budget by how many were taken.

    Attributes:
        keep: fraction of N, or count T per image, tile or frame. The paper's count includes the [CLS] token.
        variant: ``clip``, [CLS] attention and the threshold of the LLaVA release; ``qwen``, the loading itself and that of
            the Qwen release, which needs no attention. None: ``clip`` where the tower has a [CLS] token.
        before_projector: work on what enters the projector, or on the tokens' features; None: in front where one patch
            makes one token, as both releases.
        forward_cls: spend one token on the [CLS] row itself, as released; it comes last and sits at no patch.
        output_order: ``raster``, or the ``reference`` order: the [CLS] row, then group by group.
        dynamic: the paper's budget per image (Dyn): ``keep`` times phi, 1 less the mean cosine of its rows, over this number,
            the mean phi of the pictures at hand; between half of ``keep`` and twice as many. None: ``keep`` of every image.

    Source: "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity", ICLR
        2026, arXiv 2603.09480.
    Departures from the release: exact singular vectors instead of randomised ones; newlines stay; see the page.
    """

    name = "prunesid"
    title = "principal groups, look-alikes suppressed"
    paper = "arXiv 2603.09480"
    stages = ("projector",)
    looks_at = "rows before the projector, [CLS] attention of the feature block"
    sees = "frame"

    variant: Literal["clip", "qwen"] | None = None
    before_projector: bool | None = None
    forward_cls: bool = False
    output_order: Literal["raster", "reference"] = "raster"
    dynamic: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("variant", self.variant, (None, "clip", "qwen"))
        choice("output_order", self.output_order, ("raster", "reference"))
        if self.dynamic is not None:
            in_range("dynamic", self.dynamic, 0.001, 2.0)
            if self.forward_cls:
                raise ValueError(
                    f"dynamic={self.dynamic} with forward_cls=True; allowed: one of the two, a number of patches for each image "
                    "or a [CLS] row in front of a given number"
                )

    def most(self, n: int) -> int:
        k = self.budget.count(n)
        return k if self.dynamic is None else min(2 * k, n)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        before = in_front(facts, self.before_projector)
        needs: list = [ProjectorInput()] if before or self.forward_cls else []
        if self.variant == "clip" and not facts.has_cls:
            raise ValueError(
                f"method='prunesid': variant='clip' ranks by [CLS] attention, but the vision tower of this {facts.family} model "
                "has no [CLS] token; allowed here: variant='qwen', which is also the default for such towers"
            )
        if self._clip(facts):
            needs.append(ClsAttention(facts.feature_block))
        if self.forward_cls:
            needs_cls(self.name, facts)
            needs.append(TowerPrefix(facts.feature_block))
        return (Step("projector", needs=tuple(needs), amount=before),)

    def _clip(self, facts: ModelFacts) -> bool:
        return self.variant == "clip" or (self.variant is None and facts.has_cls)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        loading = "loadings in place of [CLS] attention, as released for Qwen2-VL: the vision tower has no [CLS] token"
        own = () if self.variant is not None or facts.has_cls else (loading,)
        return own + rows_substitute(facts, self.before_projector)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        cls = int(self.forward_cls)
        rows, _ = rows_of(tokens, tokens.amount)
        score = next((x for s, x in tokens.signals.items() if isinstance(s, ClsAttention)), None)
        n = tokens.num_tokens
        k = self.budget.count(n)
        if self.dynamic is not None:

            def ask(own: torch.Tensor, count: int) -> Reduction:
                found = select(rows[own], count, None if score is None else score[own])
                plan = Reduction.select(found.order, n, score=found.score, positions=self.policy)
                return plan if self.output_order == "raster" else plan.reordered(found.order)

            return by_count(shares_by_spread(spread(rows), k, n, self.dynamic), ask)
        found = select(rows, k, score, cls=cls)
        plan = Reduction.select(found.order, n, score=found.score, positions=self.policy)
        if not cls and self.output_order == "raster":
            return plan
        assign = torch.full_like(tokens.source, DROPPED)
        row = torch.arange(cls, cls + found.order.shape[1], device=assign.device).expand_as(found.order)
        features, source = None, found.order
        if cls:  # in front, at no patch
            (prefix,) = (x for s, x in tokens.signals.items() if isinstance(s, TowerPrefix))
            own = tokens.projector(prefix[:, 0, :1]).to(tokens.features.dtype)
            features = torch.cat([own, take_rows(tokens.features, source)], dim=1)
            source = F.pad(source, (1, 0), value=DROPPED)
        assign = assign.scatter(1, found.order, row)
        plan = Reduction(source, assign, features=features, positions=self.policy, score=found.score)
        return ordered(plan, self.output_order)
