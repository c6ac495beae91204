"""ToMe: in every encoder block, the r most similar pairs of tokens become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.matching import OutputOrder, in_rounds, match, ordered
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import (
    PLACES,
    Place,
    fit,
    merging_place,
    needs_encoder,
    place_substitute,
    rounded,
    schedule,
    spread,
)
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range


@dataclass(frozen=True, kw_only=True)
class ToMe(BlockSchedule):
    """Between attention and MLP of every block, split the tokens by the parity of their place into A and B, find for each
    token of A the most similar one of B, and average the r best pairs into one token each. Nothing is dropped.

    Attributes:
        keep: fraction or count of the *patches* that leave the tower, hit exactly; None: 0.5, unless ``r`` is given.
        r: tokens merged per block, instead of ``keep``: one number; a list, one number per block, padded with zeros;
            or a pair (r, inflection) as in the release. A float in [0, 1): that share of the patches that arrive, divided by
            all blocks of the tower and rounded down. A block never merges more than half of its patches.
        inflection: how ``keep`` spreads over the blocks, in [-1, 1]: 0 evenly, -1 falling to none, 1 rising from none.
        at: ``encoder``, the paper's; or ``projector``, our extension for models that pool patches after the tower or pack
            them: the tokens handed to the language model merge in as many rounds as the tower has blocks, by their
            embeddings. None: the paper's, or for such models the other.
        proportional: attention counts a merged token as often as the patches it stands for. The release turns this off
            for MAE encoders that were not trained with ToMe.
        output_order: order in which a language model reads the rows. ``raster``: sorted by the patch each row sits at,
            with that patch's position id. ``reference``: merged order, ids renumbered (behind the published figures).
        positions: policy of position ids in ``raster`` order.

    Source: Bolya et al., "Token Merging: Your ViT but Faster", ICLR 2023, arXiv 2210.09461, section 3.
    Departures from the release: similarities are float32 and ties go to the lowest index; a zero key is similar to
        nothing instead of NaN; registers and other prefix tokens never merge; ``keep`` hits an exact count; ``unmerge``
        is right with a distillation token.
    """

    name = "tome"
    title = "merge the most similar pairs, block by block"
    paper = "arXiv 2210.09461"
    stages = ("encoder", "projector")
    looks_at = "keys of every block"
    sees = "frame"

    schedules = {"r": 0}

    r: int | float | list[int] | tuple[int, float] | None = None
    inflection: float = 0.0
    at: Place | None = None
    proportional: bool = True
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("at", self.at, PLACES)
        in_range("inflection", self.inflection, -1.0, 1.0)
        if self.r is None:
            return
        if self.inflection:
            raise ValueError(f"inflection={self.inflection!r} belongs to keep; with r give the pair r=(r, inflection)")
        self._given(len(self.r) if isinstance(self.r, list) else 1)

    @classmethod
    def tinychart(cls, r: int = 84, **more: Any) -> ToMe:
        """As in TinyChart (arXiv 2404.16635), for SigLIP with its last block left out: 84 per block at 768 pixels, 20 at 512;
        rows in the order in which merging leaves them. Other parameters as ``more`` says."""
        return cls(**{"r": r, "output_order": "reference", **more})

    @classmethod
    def auroracap(cls, ratio: float = 0.1, **more: Any) -> ToMe:
        """As in AuroraCap (arXiv 2410.03051), each frame by itself: of N patches floor(N (1 - ratio) / L) merge in each block;
        ``ratio`` is the share kept, in (0, 1], and L all blocks of the tower, so that features of an earlier block keep more.

        Errors: ``ValueError`` for a ratio out of range.
        """
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio!r}; allowed: the share of patches kept, in (0, 1]")
        return cls(**{"r": 1.0 - ratio, "output_order": "reference", **more})

    @property
    def _share(self) -> float | None:
        """``r`` as a share of the patches."""
        return self.r if isinstance(self.r, float) and 0 <= self.r < 1 else None

    def _given(self, depth: int) -> list[int]:
        """``r`` for each of ``depth`` blocks; none where it is a share."""
        return [] if self.r is None or self._share is not None else schedule(self.r, depth)  # type: ignore[arg-type]

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if merging_place(self.at, facts) == "projector":
            return (Step("projector", amount=facts.feature_block + 1),)
        needs_encoder(self.name, facts)
        return tuple(
            Step("encoder", layer=block, needs=(Keys(block),), amount=r, proportional=self.proportional)
            for block, r in enumerate(self.counts(facts))
            if r is None or r > 0
        )

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return place_substitute(self.at, facts)

    def counts(self, facts: ModelFacts) -> Sequence[float | None]:
        """Tokens to merge in block 0, 1, ... up to the one that yields the features, or, below 1, a share of those that arrived;
        later blocks merge none. None where ``keep`` decides and the number of patches is not known yet.
        """
        depth = facts.feature_block + 1
        if self._share is not None:
            return [self._share / facts.tower_depth] * depth
        if self.r is not None:
            return self._given(facts.tower_depth)[:depth]
        if facts.tower_grid is None:
            return [None] * depth
        return self._rounds(math.prod(facts.tower_grid), depth)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.amount is not None, "every step has an amount"
        if tokens.stage == "projector":
            plan = in_rounds(tokens, self._rounds(tokens.num_tokens, int(tokens.amount)), lambda x, r, _: match(x, r))
            return replace(ordered(plan, self.output_order), positions=self.policy)
        assert tokens.layer is not None, "every step in the encoder names a block"
        wanted = rounded(tokens.layout.num_tokens, tokens.amount) if tokens.amount < 1 else tokens.amount
        r = min(int(wanted), (tokens.num_tokens - tokens.prefix) // 2)
        if r <= 0:
            return Reduction.identity(tokens, positions=self.policy)
        pairs = match(tokens.signal(Keys(tokens.layer)), r, tokens.prefix, tokens.window)
        return replace(pairs.merge(tokens.prefix, weight=tokens.size), positions=self.policy)

    def _rounds(self, n: int, rounds: int) -> list[int]:
        if self._share is not None:
            return [rounded(n, self._share / rounds)] * rounds
        if self.r is not None:
            return self._given(rounds)
        k = self.budget.count(n)
        return fit(spread(n - k, rounds, self.inflection), n, k)
