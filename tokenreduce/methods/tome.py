"""ToMe: in every encoder block, the r most similar pairs of tokens become one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.compaction import compact
from tokenreduce.kernels.rows import take_rows
from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, in_range

OutputOrder = Literal["raster", "reference"]
Place = Literal["encoder", "projector"]


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Between attention and MLP of every block, split the tokens by the parity of their place into A and B, find for each
    token of A the most similar one of B, and average the r best pairs into one token each. Nothing is dropped.

    Attributes:
        keep: fraction or count of the *patches* that leave the tower, hit exactly; None: 0.5, unless ``r`` is given.
        r: tokens merged per block, instead of ``keep``: one number; a list, one number per block, padded with zeros;
            or a pair (r, inflection) as in the release. A block never merges more than half of its patches.
        inflection: how ``keep`` spreads over the blocks, in [-1, 1]: 0 evenly, -1 falling to none, 1 rising from none.
        at: ``encoder``, the paper's; or ``projector``, our extension for models that pool patches after the tower or pack
            them: the tokens handed to the language model merge in as many rounds as the tower has blocks, by their
            embeddings.
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

    keep: float | int | None = None
    r: int | list[int] | tuple[int, float] | None = None
    inflection: float = 0.0
    at: Place = "encoder"
    proportional: bool = True
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        choice("at", self.at, ("encoder", "projector"))
        in_range("inflection", self.inflection, -1.0, 1.0)
        if self.r is None:
            return
        if self.keep is not None:
            raise ValueError(f"keep={self.keep!r} and r={self.r!r} both set the number of tokens; give one of them")
        if self.inflection:
            raise ValueError(f"inflection={self.inflection!r} belongs to keep; with r give the pair r=(r, inflection)")
        schedule(self.r, len(self.r) if isinstance(self.r, list) else 1)

    @property
    def budget(self) -> Budget:
        """The patches that leave the tower; all of them, as an upper bound, when ``r`` decides."""
        if self.r is not None:
            return Budget(1.0)
        return Budget(0.5 if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        if self.r is not None:
            return not any(self.r if isinstance(self.r, list) else schedule(self.r, 2))
        return self.budget.count(n) >= n

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if self.at == "projector":
            return (Step("projector", amount=facts.feature_block + 1),)
        needs_encoder(self.name, facts)
        return tuple(
            Step("encoder", layer=block, needs=(Keys(block),), amount=r, proportional=self.proportional)
            for block, r in enumerate(self.counts(facts))
            if r > 0
        )

    def counts(self, facts: ModelFacts) -> list[int]:
        """Tokens to merge in block 0, 1, ... up to the one that yields the features; later blocks merge none."""
        depth = facts.feature_block + 1
        if self.r is not None:
            return schedule(self.r, facts.tower_depth)[:depth]
        n, k = patches_kept(self.budget, facts, instead="r, such as r=8")
        return fit(spread(n - k, depth, self.inflection), n, k)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.amount is not None, "every step has an amount"
        if tokens.stage == "projector":
            plan = in_rounds(tokens, self._rounds(tokens.num_tokens, int(tokens.amount)), lambda x, r, _: match(x, r))
            return replace(ordered(plan, self.output_order), positions=self.policy)
        assert tokens.layer is not None, "every step in the encoder names a block"
        r = min(int(tokens.amount), (tokens.num_tokens - tokens.prefix) // 2)
        if r <= 0:
            return Reduction.identity(tokens, positions=self.policy)
        pairs = match(tokens.signal(Keys(tokens.layer)), r, tokens.prefix)
        return replace(pairs.merge(tokens.prefix, weight=tokens.size), positions=self.policy)

    def _rounds(self, n: int, rounds: int) -> list[int]:
        if self.r is not None:
            return schedule(self.r, rounds)
        k = self.budget.count(n)
        return fit(spread(n - k, rounds, self.inflection), n, k)


class Pairs(NamedTuple):
    """Who joins whom among the N rows of a tensor; prefix rows belong to none of the four.

    Attributes:
        alone: (B, U) long, rows that neither move nor can be joined, in output order.
        hubs: (B, M) long, rows that can be joined, in output order.
        leaving: (B, r) long, rows that join another.
        joined: (B, r) long, the hub that each of them joins.
        score: (B, r) float32, cosine of the two.
    """

    alone: Tensor
    hubs: Tensor
    leaving: Tensor
    joined: Tensor
    score: Tensor

    def merge(self, prefix: int, weight: Tensor | None = None) -> Reduction:
        """Rows out: the ``prefix`` in place, the lone rows, the hubs as means weighted by ``weight`` (B, N)."""
        batch, n = len(self.hubs), prefix + sum(rows.shape[1] for rows in self[:3])
        first = torch.arange(prefix, device=self.hubs.device).expand(batch, -1)
        anchor = torch.cat([first, self.alone, self.hubs], dim=1)
        place = torch.arange(anchor.shape[1], device=anchor.device).expand_as(anchor)
        assign = torch.empty(batch, n, dtype=torch.long, device=anchor.device).scatter_(1, anchor, place)
        assign.scatter_(1, self.leaving, assign.gather(1, self.joined))
        return Reduction.merge(assign, anchor, weight=weight)


def match(metric: Tensor, r: int, prefix: int = 0) -> Pairs:
    """Bipartite soft matching (section 3): the ``r`` most similar (A, B) pairs of ``metric`` (B, N, C).

    Places are counted with a single prefix token ([CLS], place 0, in A); two ([CLS] and distillation, one in A and one
    in B) or more do not shift the parity of the patches among themselves. Prefix rows never merge.

    Args:
        metric: (B, N, C), prefix rows first.
        r: pairs, from 1 to half the patches.
        prefix: P, prefix rows.

    Returns:
        Pairs; lone rows of A ascending when there is a prefix, else the most similar first, as released.
    """
    batch, n, _ = metric.shape
    assert 1 <= r <= (n - prefix) // 2, "r fits"
    rows = torch.arange(prefix, n, device=metric.device)
    odd = prefix == 1
    pairs = best_pairs(metric, rows[odd::2].expand(batch, -1), rows[1 - odd :: 2].expand(batch, -1), r)
    return pairs._replace(alone=pairs.alone.sort(dim=1).values) if prefix else pairs


def best_pairs(metric: Tensor, a: Tensor, b: Tensor, r: int) -> Pairs:
    """The best partner in ``b`` (B, M) of each of ``a`` (B, A), rows of ``metric`` (B, N, C); the ``r`` best pairs merge."""
    best, partner = bipartite_matching(take_rows(metric, a), take_rows(metric, b))
    score, order = best.sort(dim=1, descending=True, stable=True)
    a = a.gather(1, order)
    joined = b.gather(1, partner.gather(1, order[:, :r]))
    return Pairs(alone=a[:, r:], hubs=b, leaving=a[:, :r], joined=joined, score=score[:, :r])


def in_rounds(
    tokens: VisualTokens, counts: list[int], pairs: Callable[[Tensor, int, int], Pairs], *, weighted: bool = True
) -> Reduction:
    """Merge ``counts[i]`` tokens (at most half of them) in round i, ``pairs(features, r, i)`` saying which.

    Similarities are those of the features (B, N, D), merged as they are, by sizes or, not ``weighted``, by plain means.
    """
    x, size = tokens.features, tokens.size
    source = assign = torch.arange(tokens.num_tokens, device=x.device).expand(len(x), -1)
    share = torch.ones_like(size)  # of each token in the mean of means that its row is
    for i, count in enumerate(counts):
        r = min(count, x.shape[1] // 2)
        if r == 0:
            continue
        step = pairs(x, r, i).merge(0, weight=size if weighted else None)
        x = step.carry(x)
        members = torch.zeros(step.source.shape, device=x.device).scatter_add_(1, step.assign, torch.ones_like(size))
        size = torch.zeros_like(members).scatter_add_(1, step.assign, size)
        source, assign = source.gather(1, step.source), step.assign.gather(1, assign)
        share = share / members.gather(1, assign)
    return Reduction.merge(assign, source, tokens.size if weighted else share)


def ordered(plan: Reduction, order: OutputOrder) -> Reduction:
    """The rows of ``plan`` sorted by where they sit, for ``raster``; as they are for ``reference``."""
    if order == "reference":
        return plan
    source, index = plan.source.sort(dim=1)
    return replace(plan, source=source, assign=index.argsort(dim=1).gather(1, plan.assign))


def needs_encoder(name: str, facts: ModelFacts) -> None:
    """Raise where a tower of a vision-language model cannot merge, with what can be done instead."""
    if "encoder" not in facts.stages and "projector" in facts.stages:
        raise ValueError(
            f"method={name!r} merges patches inside the vision encoder, but a {facts.family} model pools or packs patches "
            "after or in it, so merged ones would have no place; pass at='projector' to merge the tokens handed to the "
            "language model instead"
        )


def unmerge(x: Tensor, assign: Tensor) -> Tensor:
    """Copy the rows ``x`` (B, K, D) back to the N places they stand for, ``assign`` (B, N); a dropped place (-1) is zero."""
    return compact(x, assign)


def schedule(r: int | list[int] | tuple[int, float], depth: int) -> list[int]:
    """Tokens to merge in each of ``depth`` blocks, from the three forms of ``r`` of the release.

    An int: the same everywhere. A list: as it stands, zeros appended. A pair (r, f), f in [-1, 1]: linear from
    ``int(r (1 - f))`` to ``2 r`` minus that, truncated, so that the sum can fall a little short of ``r * depth``.

    Errors: ``TypeError`` for anything else, ``ValueError`` for negative numbers, f out of range or a list too long.

    >>> schedule(8, 3), schedule([5, 4], 3), schedule((8, -1.0), 3)
    ([8, 8, 8], [5, 4, 0], [16, 8, 0])
    """
    if isinstance(r, list):
        if not all(_is_count(value) for value in r):
            raise ValueError(
                f"r={r!r}; allowed in a list: ints >= 0, one per block. A pair is a tuple, such as r=(8, -1.0)"
            )
        if len(r) > depth:
            raise ValueError(f"r={r!r} has {len(r)} entries for the {depth} blocks of this tower; give at most {depth}")
        return r + [0] * (depth - len(r))
    if isinstance(r, tuple) and len(r) == 2 and _is_count(r[0]):
        base, inflection = r
        in_range("the inflection in r=(r, inflection)", inflection, -1.0, 1.0)
        if depth == 1:
            return [base]
        low = int(base * (1 - inflection))
        high = 2 * base - low
        return [int(low + (high - low) / (depth - 1) * block) for block in range(depth)]
    if isinstance(r, tuple) or not _is_count(r):
        raise TypeError(
            f"r={r!r}; allowed: an int >= 0 (tokens merged per block), a list of such ints, or a pair (r, inflection) "
            "such as (8, -1.0)"
        )
    return [r] * depth


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def spread(total: int, depth: int, inflection: float = 0.0) -> list[int]:
    """``total`` merges over ``depth`` blocks, linear from ``1 - inflection`` to ``1 + inflection`` times the mean.

    Largest remainders are rounded up, the earliest of equal ones: evenly, the earliest blocks merge one more.
    """
    if depth == 1:
        return [total]
    wanted = [total / depth * (1 + inflection * (2 * block / (depth - 1) - 1)) for block in range(depth)]
    counts = [math.floor(w) for w in wanted]
    upwards = sorted(range(depth), key=lambda block: (counts[block] - wanted[block], block))
    for block in upwards[: total - sum(counts)]:
        counts[block] += 1
    return counts


def fit(wanted: list[int], n: int, k: int) -> list[int]:
    """``wanted`` merges per block made possible: from ``n`` patches to exactly ``k``, no block merging more than half.

    What a block cannot merge is left to later ones; where later ones could not make up for it, a block merges more.

    Errors: ``ValueError`` when not even halving in every block leads from ``n`` to ``k``.
    """
    depth = len(wanted)
    if n > k << depth:
        raise ValueError(
            f"keep={k} of {n} patches: a block merges at most half of its patches, so {depth} blocks leave at least "
            f"{-(-n >> depth)}; ask for that many, or shorten further after the tower, for example with "
            "tr.wrap(model, tr.ToMe(keep=0.5), tr.FasterVLM(keep=16))"
        )
    counts, owed = [], 0
    for block, r in enumerate(wanted):
        owed += r
        must = n - (k << (depth - block - 1))
        count = min(max(owed, must, 0), n // 2, n - k)
        counts.append(count)
        owed, n = owed - count, n - count
    return counts


def patches_kept(budget: Budget, facts: ModelFacts, instead: str) -> tuple[int, int]:
    """N0 patches of the tower and the K of them that ``budget`` keeps.

    Errors: ``ValueError`` when the number of patches is not fixed or the count exceeds it.
    """
    if facts.tower_grid is None:
        raise ValueError(
            f"keep={budget.keep!r} has to be spread over the blocks beforehand, but the number of patches of this "
            f"{facts.family} model is not fixed; give {instead}"
        )
    n = math.prod(facts.tower_grid)
    if isinstance(budget.keep, int) and budget.keep > n:
        raise ValueError(
            f"keep={budget.keep} exceeds the {n} patches of this {facts.family} model; allowed: an int from 1 to {n}, "
            "or a float in (0, 1]"
        )
    return n, budget.count(n)
