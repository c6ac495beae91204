"""DyMU: in every encoder block, all pairs of tokens more alike than a threshold become one; simple pictures end with fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.calibration import Calibration
from tokenreduce.matching import OutputOrder, match
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import fit, needs_encoder, spread
from tokenreduce.signals import Keys
from tokenreduce.threshold_merging import Path, above, candidates
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole


@dataclass(frozen=True, kw_only=True)
class DyMU(BlockSchedule):
    """Pairs are found as by ToMe, between attention and MLP of every block; all merge whose keys' cosine is greater than the
    block's threshold, found once for a mean number of tokens on a set of pictures (``tr.calibrate``).

    Attributes:
        calibration: a file of ``tokenreduce calibrate``, its content, or thresholds: a list, one per block, or a dictionary by
            block; 1 where nothing merges. Each image is left with a number of its own.
        keep: without a calibration, fraction or count of the patches that leave the tower of every image, as by ToMe.
        max_r: most tokens that merge in a block, the most alike ones; None: half of the patches.
        path: which of the release's two paths is followed where they differ: ``instance``, lone rows of A the most alike first
            in a tower without [CLS], and in their places where nothing merges, at most half of the patches merging in a block;
            ``batch``, lone rows ascending, all of A merging.
        proportional: attention counts a merged token as often as the patches it stands for.
        unmerge: the language model reads each merged token at all places it stands for (virtual unmerging): its attention and
            its cache are those of the whole picture, projections and MLPs run on the merged tokens.
        output_order: order in which a language model reads the rows: ``raster``, by the patch each row sits at, or the merged
            order of the ``reference``, ids renumbered.
        positions: policy of position ids in ``raster`` order.

    Source: Wang et al., "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", NeurIPS 2025, arXiv 2504.17040,
        sections 3.1 and 3.2.
    Departures from the release: an image is merged alike in any batch; division is exact; thresholds are float64; unmerging is
        off by default, and serves batches and several images. See its page.
    """

    name = "dymu"
    title = "merge all pairs above a threshold per block, found on a set of pictures"
    paper = "arXiv 2504.17040"
    stages = ("encoder",)
    looks_at = "keys of every block"
    sees = "frame"

    schedules = {"calibration": 1.0}

    calibration: Calibration | str | PathLike[str] | Mapping[Any, Any] | Sequence[float] | None = None
    max_r: int | None = None
    path: Path = "instance"
    proportional: bool = True
    unmerge: bool = False
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("path", self.path, ("instance", "batch"))
        whole("max_r", self.max_r, 1, ", tokens that merge in a block", none=True)
        if self.unmerge and self.policy == "renumber":
            raise ValueError(
                f"unmerge=True with positions={self.positions!r}, output_order={self.output_order!r}; allowed: positions='keep' "
                "and output_order='raster', since unmerged tokens are read at their own places"
            )
        if self.calibration is not None:
            object.__setattr__(self, "calibration", Calibration.of(self.calibration))

    @property
    def unmerges(self) -> bool:  # type: ignore[override]  # read as the attribute it stands for
        return self.unmerge

    def is_identity(self, n: int) -> bool:
        if self.calibration is None:
            return self.budget.count(n) >= n
        return all(value >= 1 for value in Calibration.of(self.calibration).thresholds)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        needs_encoder(self.name, facts)
        return tuple(
            Step("encoder", layer=block, needs=(Keys(block),), amount=amount, proportional=self.proportional)
            for block, amount in enumerate(self.amounts(facts))
            if amount is None or (amount > 0 if isinstance(amount, int) else amount < 1)
        )

    def amounts(self, facts: ModelFacts) -> Sequence[float | int | None]:
        """The threshold of block 0, 1, ..., a float; without a calibration how many merge there, an int or not known yet."""
        depth = facts.feature_block + 1
        if self.calibration is not None:
            found = Calibration.of(self.calibration)
            found.check(self.name, facts)
            return [float(value) for value in found.thresholds[:depth]]
        if facts.tower_grid is None:
            return [None] * depth
        n = math.prod(facts.tower_grid)
        k = self.budget.count(n)
        return fit(spread(n - k, depth), n, k)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        if self.calibration is not None:
            return ()
        return ("equally many merges in every image, as by ToMe, in place of thresholds: no calibration was given",)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.layer is not None, "every step names a block"
        keys, amount, half = tokens.signal(Keys(tokens.layer)), tokens.amount, (tokens.num_tokens - tokens.prefix) // 2
        if isinstance(amount, int):
            r = min(amount, half, self.max_r or half)
            if r <= 0:
                return Reduction.identity(tokens, positions=self.policy)
            pairs = match(keys, r, tokens.prefix, tokens.window)
            return replace(pairs.merge(tokens.prefix, weight=tokens.size), positions=self.policy)
        found = candidates(keys, tokens.prefix, tokens.window)
        most = half if self.path == "instance" else tokens.num_tokens
        counts = None if found is None else above(found.score, amount).clamp(max=min(most, self.max_r or most))
        if found is None or counts is None or (self.path == "instance" and not bool(counts.any())):
            return Reduction.identity(tokens, positions=self.policy)
        return replace(found.merge(counts, tokens.size, self.path), positions=self.policy)
