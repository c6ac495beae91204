"""AIM: merge look-alikes of each frame before the language model, then drop layer by layer what its attention does not reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from tokenreduce.budgets import Budget
from tokenreduce.matching import in_rounds, match, ordered
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.projector_rows import rows_substitute
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import Line, rounded
from tokenreduce.signals import AttentionWalk, Keys, ProjectorInput
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import at_most, choice, in_range, whole

STARTS = {28: 14, 32: 13}  # published, by depth: Qwen2-7B and Vicuna-7B
SPAN = 8 / 28  # of the depth, over which all visual tokens go
MERGED = 0.25  # published for videos: two halvings


@dataclass(frozen=True, kw_only=True)
class AIM(Method):
    """Merge the tokens of each frame by similarity, half of them at a time; then, after each decoder layer from a middle one on,
    drop an equal share of them, those that a short walk along the attention of that layer reaches least, down to none.

    Attributes:
        keep: visual tokens that a decoder layer takes in, averaged over the layers: a fraction of the projected tokens, or a
            count per image. Tokens merge as far as the schedule leaves to do; averages above its own start it later. None:
            merging to a quarter. With ``prune=False``, what merging leaves.
        prune: whether tokens are dropped inside the language model.
        metric: what is alike: ``features`` of the tokens, which merge; or ``keys`` of the feature block, as released for
            LLaVA-1.5, by which the rows that enter the projector merge.
        start: first decoder layer (0-based, l1) after which tokens are dropped; None: as published for 28 and 32 layers,
            elsewhere half of the depth.
        slope: share of the tokens dropped after each layer, in (0, 1]; None: all within 8 of 28 layers.
        temperature, steps: of the walk, tau > 0 and at least 1.
        output_order: merged tokens in ``raster`` order, or in the ``reference`` order of the release.

    Source: Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025,
        arXiv 2412.03248, sections 3.2 and 3.3; metric, order and rounding as in the authors' code.
    Departures from the release: tokens are really dropped, where it hides them; single images merge as frames do. See its page.
    """

    name = "aim"
    title = "merge within frames, then drop layer by layer what attention does not reach"
    paper = "arXiv 2412.03248"
    stages = ("projector", "llm")
    looks_at = "features of each frame, attention of decoder layers from the middle on"
    sees = "frame"
    counts_at = "average"

    keep: float | int | None = None
    prune: bool = True
    metric: Literal["features", "keys"] = "features"
    start: int | None = None
    slope: float | None = None
    temperature: float = 0.1
    steps: int = 5
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("metric", self.metric, ("features", "keys"))
        in_range("temperature", self.temperature, 1e-3, 1e3)
        for argument, least, hint in (("start", 0, "14 of 28"), ("steps", 1, "5")):
            whole(argument, getattr(self, argument), least, f". The paper uses {hint}.", none=argument == "start")
        at_most("steps", self.steps, 1000, "by when a walk has settled")
        if self.slope is not None and not (isinstance(self.slope, float) and 0.0 < self.slope <= 1.0):
            raise ValueError(f"slope={self.slope!r}; allowed: a float in (0, 1]. The paper uses 0.125, of 28 layers.")

    @property
    def budget(self) -> Budget:
        return Budget(MERGED if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        return self.budget.is_full  # a count is of what entered, not of what is left

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.decoder_depth
        if self.prune and depth < 2:
            raise ValueError(f"prune=True in a model of {depth} decoder layers; allowed: 2 or more, or prune=False")
        if self.start is not None and self.prune and self.start > depth - 2:
            raise ValueError(f"start={self.start}; allowed in a language model of {depth} layers: 0 to {depth - 2}")
        schedule = self.schedule(depth, facts.tokens_per_image) if self.prune else Line(1, 1, 1.0)
        layers = (i for i in range(schedule.start, schedule.depth - 1) if schedule.left(i - 1) > 0)
        walks = (AttentionWalk(i, self.steps, self.temperature) for i in layers)
        drops = (Step("llm", walk.layer + 1, (walk,), schedule.left(walk.layer)) for walk in walks)
        by_keys = (ProjectorInput(), Keys(facts.feature_block, "joined")) if self.metric == "keys" else ()
        return (Step("projector", needs=by_keys, amount=schedule), *drops)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return rows_substitute(facts, asked=True) if self.metric == "keys" else ()

    def schedule(self, depth: int, n: int | None) -> Line:
        """The schedule of a model of ``depth`` layers whose images have ``n`` tokens, None: of any size."""
        slope = self.slope or 1 / max(1, round(SPAN * depth))
        first = STARTS.get(depth, round(depth / 2)) if self.start is None else self.start
        keep = self.keep if not isinstance(self.keep, int) or n is None else min(1.0, self.keep / n)
        if not isinstance(keep, float) or self.start is not None:
            return Line(depth, first, slope)
        later = (Line(depth, start, slope) for start in range(first, depth))
        return next(s for s in later if sum(s.left(layer - 1) for layer in range(depth)) >= keep * depth - 1e-9)

    def leaving(self, tokens: VisualTokens) -> int:
        """Tokens of an image that merging leaves, so that the layers take in ``keep`` on average."""
        n, schedule = tokens.num_tokens, tokens.amount
        goal = self.budget.count(n)
        if self.keep is None or goal >= n:
            return goal
        target = goal * schedule.depth
        if schedule.total(n) < target - schedule.depth / 2:
            raise ValueError(
                f"keep={self.keep} of {n} tokens: with start={schedule.start} and slope={schedule.slope:.3g} the layers take in "
                f"{schedule.total(n) / schedule.depth:.1f} on average unmerged; allowed: fewer, or drop later (start=...)"
            )
        share = schedule.total(10**6) / 10**6
        near = range(max(1, math.floor(target / share) - 1), math.ceil(target / share) + 2)
        return min((min(k, n) for k in near), key=lambda k: abs(schedule.total(k) - target))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.share is None and self.budget.count(tokens.layout.num_tokens) >= tokens.layout.num_tokens:
            return Reduction.identity(tokens)
        if tokens.stage == "llm":
            (score,) = tokens.signals.values()
            k = min(rounded(tokens.entered, tokens.amount), tokens.num_tokens)
            return Reduction.top(score, k, positions=self.positions)
        n, counts = tokens.num_tokens, []
        k = tokens.share if isinstance(tokens.share, int) else self.leaving(tokens)
        while n > k:
            counts.append(min(n // 2, n - k))
            n -= counts[-1]
        if not counts:
            return Reduction.identity(tokens, positions=self.positions)
        rows, *keys = tokens.signals.values() or (tokens.features,)
        alike = replace(tokens, features=keys[0] if keys else rows)
        plan = in_rounds(alike, counts, lambda x, r, _: match(x, r), weighted=False)
        plan.positions = self.policy
        if keys:
            plan.features = tokens.projector(plan.carry(rows)).to(tokens.features.dtype)
        return ordered(plan, self.output_order)
