"""PyramidDrop: after some decoder layers, keep the visual tokens that the last prompt token would look at in the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tokenreduce.budgets import Budget
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import lengths, scaled_layers
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import ascending, is_numbers

PUBLISHED = 15 / 32  # the average of 1, 1/2, 1/4 and 1/8 over four stages of equal depth
EARLY = 0.28  # averages up to this need a first boundary before a quarter of the layers


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Cut the language model into stages; at each boundary b keep the tokens of highest attention from the last prompt token,
    computed with the norm and the projections of layer b, on what enters it.

    Attributes:
        keep: visual tokens that a decoder layer takes in, averaged over the layers: a fraction of those that enter the
            language model, or a count per image. None: 15/32, as published, unless ``ratios`` are given.
        layers: boundaries: numbers of layers that ran before each cut, ascending, at least 1. None: a quarter, a half and
            three quarters of the layers; for averages up to 0.28, earlier.
        ratios: what is left after each boundary, of the tokens that entered, in [0, 1], rounded down. None: a geometric
            sequence whose average is ``keep``.
        positions: the release renumbers the shortened sequence at every boundary (``renumber``); the default keeps ids.

    Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
        Reduction", CVPR 2025, arXiv 2410.17247, section 3.2; layer of the projections as in the authors' code.
    Departures from the release: position ids kept by default; any number of images, each with its own counts; grouped keys;
        any padding; decoding in batches.
    """

    name = "pyramiddrop"
    title = "halve, stage by stage, what the next layer ignores"
    paper = "arXiv 2410.17247"
    stages = ("llm",)
    looks_at = "attention of the decoder layer to come, at each boundary"
    counts_at = "average"

    keep: float | int | None = None
    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            ascending("layers", self.layers, 1, "The paper uses (8, 16, 24) of 32.")
        if self.ratios is None:
            return
        if self.keep is not None:
            raise ValueError(
                f"keep={self.keep} and ratios={self.ratios} both say how many tokens stay; allowed: one of the two"
            )
        stages = len(self.layers or (8, 16, 24))
        given = self.ratios if is_numbers(self.ratios) else ()
        falling = all(0.0 <= b <= a <= 1.0 for a, b in pairwise((1.0, *given)))
        if len(given) != stages or not falling:
            raise ValueError(
                f"ratios={self.ratios}; allowed: {stages} numbers from 1 down to 0, one per boundary. The paper uses "
                "(0.5, 0.25, 0.125)."
            )

    @property
    def budget(self) -> Budget:
        return Budget(PUBLISHED if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        return self.ratios is None and self.budget.is_full  # a count is of what entered, not of what is left

    def most(self, n: int) -> int:
        return n  # an average bounds no single stage

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth, n = facts.decoder_depth, facts.tokens_per_image
        boundaries = self.boundaries(depth, n)
        if depth < 2 or boundaries[-1] >= depth or (self.ratios and len(boundaries) != len(self.ratios)):
            raise ValueError(
                f"layers={boundaries} of a language model of {depth} layers; allowed: boundaries from 1 to {depth - 1}, each "
                "followed by a layer, as many as ratios"
            )
        if n is not None:
            self.lengths(n, boundaries, depth)
        return tuple(
            Step("llm", layer=b, needs=(LastQueryAttention(b, ahead=True),), amount=(boundaries, depth))
            for b in boundaries
        )

    def boundaries(self, depth: int, n: int | None) -> tuple[int, ...]:
        """Layers that run before each cut, in a model of ``depth`` layers whose images have ``n`` tokens; None: of any size."""
        if self.layers is not None:
            return self.layers
        keep = PUBLISHED if self.keep is None else self.keep
        share = keep if isinstance(keep, float) else 1 / 8 if n is None else keep / n
        if share > EARLY or self.ratios is not None:
            return tuple(sorted({max(b, 1) for b in scaled_layers((1, 2, 3), 4, depth)}))
        first = max(1, math.floor(share * depth / 2))
        return tuple(sorted({first + round(i * (depth - first) / 3) for i in range(3)}))

    def lengths(self, n: int, boundaries: tuple[int, ...], depth: int) -> list[int]:
        """Tokens of an image, of ``n`` that enter, in each stage.

        Errors: ``ValueError`` when the first stage alone takes more than the average leaves.
        """
        if self.ratios is None and self.budget.count(n) >= n:
            return [n] * (len(boundaries) + 1)
        if self.ratios is not None:
            return [n, *(int(n * ratio) for ratio in self.ratios)]
        runs = [b - a for a, b in pairwise((0, *boundaries, depth))]
        keep = PUBLISHED if self.keep is None else self.keep
        goal = min(keep * n if isinstance(keep, float) else keep, n)
        least = (n * runs[0] + depth - runs[0]) / depth
        if least > goal + 0.5:
            raise ValueError(
                f"keep={keep} of {n} tokens cannot be reached: all of them pass the first {runs[0]} of {depth} layers; allowed: "
                f"an average of {math.ceil(least)} or more. Cut earlier (layers=...) or shorten in front of the language model, "
                "for example with tr.wrap(model, tr.Pool(keep=0.5), tr.PyramidDrop())"
            )
        return lengths(n, goal, runs)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        (score,) = tokens.signals.values()
        boundaries, depth = tokens.amount
        planned = self.lengths(tokens.entered, boundaries, depth)[1 + boundaries.index(tokens.layer)]
        if planned >= tokens.num_tokens:
            return Reduction.identity(tokens)
        return Reduction.top(score, min(planned, tokens.num_tokens), positions=self.positions)
