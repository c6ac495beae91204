"""PiToMe: tokens of large clusters merge, isolated ones are protected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.energy_merging import PRESETS, Merge, Preset, Rounds, merges, spread_by_share
from tokenreduce.matching import (
    MATCHINGS,
    Matching,
    OutputOrder,
    Pairs,
    in_rounds,
    match,
    match_energy,
    match_energy_bsm,
    ordered,
)
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.schedules import PLACES, Place, merging_place, needs_encoder, place_substitute, schedule
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range


@dataclass(frozen=True, kw_only=True)
class PiToMe(BlockSchedule):
    """In every block, score tokens by their energy, the mean thresholded similarity to all tokens; the 2r of highest
    energy are candidates, split by rank into A and B, and each of A joins the most similar one of B. The others, the
    isolated tokens, are protected.

    Attributes:
        keep: fraction or count of the *patches* that leave the tower, hit exactly; None: 0.5, unless ``rho`` or ``r`` is
            given.
        rho: share of its tokens that a block keeps, instead of ``keep``: a number in (0, 1], or a list, one per block,
            padded with 1. Of T tokens ``floor(T - T rho)`` merge, at most half.
        r: tokens merged per block, instead of ``keep``: a number, or a list, one per block, padded with zeros.
        at: ``encoder``, the paper's; or ``projector``, our extension for models that pool patches after the tower or pack
            them: the tokens handed to the language model merge in as many rounds as the tower has blocks, by their
            embeddings. None: the paper's, or for such models the other.
        preset: a key of ``PRESETS``, from which every switch below follows that is None. None: ``llava`` (the released
            LLaVA wiring) in a vision-language model, ``keys_bsm`` in an encoder alone. ``keys`` is the paper's figure; with
            ToMe's rule in every block it keeps more of the features (docs/real_tower.md).
        metric: similarity is measured on ``keys`` (head mean) or ``features`` (all channels).
        when: merge in the ``middle`` of a block, between attention and MLP, or ``after`` it.
        matching: ``energy`` (the paper's), ``energy_bsm`` (ToMe's rule on tokens sorted by energy) or ``bsm`` (ToMe's
            rule); one for all blocks, or a list, one per block, the last repeated.
        m0: margin of block 0, in [-1, 1]; block i of L has ``m0 - fall * i / L``.
        fall: see ``m0``, in [0, 2]; where the preset has none, ``m0``.
        alpha: depth of the ELU below the margin, at least 0.
        size_weighted: average by the number of patches a token stands for; False: plain mean.
        prop_attn: attention counts a merged token as often as the patches it stands for.
        prune: drop the tokens of A instead of merging them.
        output_order: order in which a language model reads the rows. ``raster``: sorted by the patch each row sits at,
            with that patch's position id. ``reference``: merged order, ids renumbered, as released.
        positions: policy of position ids in ``raster`` order.

    Source: Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024,
        arXiv 2405.16148, section 3.
    Departures from the release: scores are float32 and ties go to the lowest index; rho below 0.5 merges half instead
        of failing; prefix tokens other than [CLS] never merge; ``keep`` hits an exact count.
    """

    name = "pitome"
    title = "merge inside clusters, protect isolated tokens"
    paper = "arXiv 2405.16148"
    stages = ("encoder", "projector")
    looks_at = "keys or features of every block"
    sees = "frame"

    schedules = {"rho": 1, "r": 0}

    rho: float | list[float] | None = None
    r: int | list[int] | None = None
    at: Place | None = None
    preset: str | None = None
    metric: Literal["keys", "features"] | None = None
    when: Literal["middle", "after"] | None = None
    matching: Matching | list[Matching] | None = None
    m0: float | None = None
    fall: float | None = None
    alpha: float = 1.0
    size_weighted: bool | None = None
    prop_attn: bool | None = None
    prune: bool = False
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("at", self.at, PLACES)
        choice("preset", self.preset, (None, *PRESETS))
        choice("metric", self.metric, (None, "keys", "features"))
        choice("when", self.when, (None, "middle", "after"))
        if isinstance(self.matching, list) and self.matching:
            for name in self.matching:
                choice("matching", name, MATCHINGS)
        else:
            choice("matching", self.matching, (None, *MATCHINGS))
        in_range("m0", self.m0 or 0.0, -1.0, 1.0)
        in_range("fall", self.fall or 0.0, 0.0, 2.0)
        in_range("alpha", self.alpha, 0.0, math.inf)
        for share in self._shares:
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise ValueError(f"rho={self.rho!r}; allowed: the share kept per block, in (0, 1], or a list of such")
        if isinstance(self.r, tuple):
            raise TypeError(f"r={self.r!r}; allowed: an int >= 0 (tokens merged per block), or a list of such ints")
        if self.r is not None:
            schedule(self.r, len(self.r) if isinstance(self.r, list) else 1)

    @property
    def _shares(self) -> list[float]:
        return [] if self.rho is None else self.rho if isinstance(self.rho, list) else [self.rho]

    def switches(self, facts: ModelFacts) -> Preset:
        """The preset for such a model with the switches that were set by hand."""
        name = self.preset or ("llava" if facts.decoder_depth else "keys_bsm")
        by_hand = {f.name: getattr(self, f.name, None) for f in fields(Preset)}
        return replace(PRESETS[name], **{key: value for key, value in by_hand.items() if value is not None})

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        switches, depth = self.switches(facts), facts.tower_depth
        for name, values in (("rho", self._shares), ("matching", self.matching)):
            if isinstance(values, list) and len(values) > depth:
                raise ValueError(
                    f"{name} has {len(values)} entries for the {depth} blocks of this tower; give at most {depth}"
                )
        matchings = switches.matchings(depth)
        if merging_place(self.at, facts) == "projector":
            if self.prune:
                raise ValueError("prune=True belongs to at='encoder'; at the projector leave it out")
            how = [
                Merge(0, matching, switches.margin(i, depth), switches.size_weighted)
                for i, matching in enumerate(matchings)
            ]
            return (Step("projector", amount=Rounds(how[: facts.feature_block + 1])),)
        needs_encoder(self.name, facts)
        return tuple(
            Step(
                "encoder",
                layer=block,
                needs=(Keys(block),) if switches.metric == "keys" else (),
                amount=None
                if number is None
                else Merge(number, matchings[block], switches.margin(block, depth), switches.size_weighted),
                when=switches.when,
                proportional=switches.prop_attn,
            )
            for block, number in enumerate(self._numbers(facts, matchings))
            if number is None or number > 0
        )

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return place_substitute(self.at, facts)

    def _numbers(self, facts: ModelFacts, matchings: list[Matching]) -> Sequence[float | None]:
        """Per block up to the one that yields the features: merges, or rho below 1; 0 where nothing merges.

        None where ``keep`` decides and the number of patches is not known yet.
        """
        depth = facts.feature_block + 1
        if self.r is not None:
            return schedule(self.r, facts.tower_depth)[:depth]
        if self.rho is not None:
            shares = self.rho if isinstance(self.rho, list) else [self.rho] * depth
            return [share if share < 1 else 0.0 for share in shares[:depth]]
        if facts.tower_grid is None:
            return [None] * depth
        n = math.prod(facts.tower_grid)
        return spread_by_share(n, self.budget.count(n), min(facts.tower_prefix, 1), matchings[:depth])

    def reduce(self, tokens: VisualTokens) -> Reduction:
        how, prefix = tokens.amount, tokens.prefix
        if isinstance(how, Rounds):
            return self._in_rounds(tokens, how.each)
        assert tokens.layer is not None, "every step in the encoder names a block"
        assert isinstance(how, Merge), "every step has such an amount"
        n = tokens.num_tokens - prefix
        r = merges(n, how, min(prefix, 1), how.matching) if how < 1 else min(int(how), n // 2)
        if r <= 0:
            return Reduction.identity(tokens, positions=self.policy)
        metric = tokens.signal(Keys(tokens.layer)) if tokens.signals else tokens.features
        pairs = self._pairs(metric, r, how, prefix, tokens.window)
        plan = pairs.merge(prefix, weight=tokens.size if how.weighted else None)
        if self.prune:
            plan = replace(
                plan, assign=plan.assign.scatter(1, pairs.leaving, DROPPED), merges=False, weight=None, covers=False
            )
        return replace(plan, positions=self.policy)

    def _pairs(self, metric: Tensor, r: int, how: Merge, prefix: int = 0, window: Tensor | None = None) -> Pairs:
        if how.matching == "bsm":
            return match(metric, r, prefix, window)
        if how.matching == "energy_bsm":
            return match_energy_bsm(metric, r, how.margin, self.alpha, prefix, window)
        return match_energy(metric, r, how.margin, self.alpha, prefix, window)

    def _in_rounds(self, tokens: VisualTokens, each: list[Merge]) -> Reduction:
        n, rounds = tokens.num_tokens, len(each)
        if self.r is not None:
            counts = schedule(self.r, rounds)
        elif self.rho is not None:
            shares = self.rho if isinstance(self.rho, list) else [self.rho] * rounds
            counts = []
            for how, share in zip(each, shares):
                counts.append(merges(n - sum(counts), share, 0, how.matching))
        else:
            counts = spread_by_share(n, self.budget.count(n), 0, [how.matching for how in each])
        plan = in_rounds(tokens, counts, lambda x, r, i: self._pairs(x, r, each[i]), weighted=each[0].weighted)
        return replace(ordered(plan, self.output_order), positions=self.policy)
