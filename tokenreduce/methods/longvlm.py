"""LongVLM: short segments of a video, in each of which alike tokens merge in rounds; and a few tokens for the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.matching import halvings, in_rounds, match, ordered
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.projector_rows import needs_cls
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import largest_remainder
from tokenreduce.signals import ProjectorInput, TowerPrefix
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole
from tokenreduce.whole_frames import by_frame

GLOBAL = 5


@dataclass(frozen=True, kw_only=True)
class LongVLM(Method):
    """Cut a video into segments of ``segment`` frames; in each, halve the tokens again and again by joining every other token to
    the most alike of the rest. In front of them stand the [CLS] rows of the last blocks, each averaged over all frames.

    Attributes:
        keep: fraction of the T * N tokens of a video, or count per video, tokens for the whole of it included; the paper's 30 of
            2,560 in every segment. At least one of every segment is left.
        segment: frames of a segment; the last one may be shorter, and keeps less in proportion.
        groups: groups of channels that are averaged before tokens are compared; a divisor of the channels.
        global_tokens: tokens for the whole video, of as many last blocks; None: 5 where the tower has a [CLS] token, as many
            blocks and its projector takes single rows, else none.
        output_order: ``raster``, or in each segment the ``reference`` order of the rounds, ids renumbered.

    Source: Weng et al., "LongVLM: Efficient Long Video Understanding via Large Language Models", ECCV 2024, arXiv 2404.03384.
    Departures from the release: merging behind the projector, so that any family can; sums are float32. See the page.
    """

    name = "longvlm"
    title = "video: merge in short segments"
    paper = "arXiv 2404.03384"
    media = ("video",)
    stages = ("projector",)
    looks_at = "cosines of tokens in a segment, [CLS] rows of the last blocks"

    keep: float | int = 30 / 2560
    segment: int = 10
    groups: int = 16
    global_tokens: int | None = None
    output_order: Literal["raster", "reference"] = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        for argument, least, hint in (("segment", 1, 10), ("groups", 1, 16), ("global_tokens", 0, GLOBAL)):
            whole(
                argument, getattr(self, argument), least, f". The paper uses {hint}.", none=argument == "global_tokens"
            )

    def always_left(self, layout: Layout) -> int:
        return -(-layout.frames // self.segment)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        count = self.global_tokens
        if count is None:
            count = GLOBAL if has_rows(facts) else 0
        if count:
            needs_cls(self.name, facts, f"global_tokens={count}", "global_tokens=0")
        if count > facts.tower_depth:
            raise ValueError(
                f"global_tokens={count} of a tower of {facts.tower_depth} blocks; allowed: at most one of each"
            )
        levels = tuple(TowerPrefix(facts.tower_depth - count + i) for i in range(count))
        return (Step("projector", needs=(ProjectorInput(), *levels) if levels else ()),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        lacks = self.global_tokens is None and not has_rows(facts)
        return (
            f"no tokens for the whole video: they take [CLS] rows of {GLOBAL} blocks as the projector does",
        ) * lacks

    def reduce(self, tokens: VisualTokens) -> Reduction:
        x = by_frame(tokens, self.name)
        frames, n, channels = x.shape[1:]
        if channels % self.groups:
            raise ValueError(f"groups={self.groups} of {channels} channels; allowed: a divisor of these")
        levels = [tokens.signals[signal] for signal in tokens.signals if isinstance(signal, TowerPrefix)]
        sizes = [min(self.segment, frames - first) for first in range(0, frames, self.segment)]
        k = max(self.budget.count(tokens.num_tokens), len(sizes))
        levels = levels[: k - len(sizes)] if tokens.projector.exact else []
        counts = shares(sizes, n, k - len(levels))
        assign, source, first, before = [], [], 0, 0
        made: dict[tuple[int, int], list[int]] = {}
        for s, kind in enumerate(zip(sizes, counts)):
            made.setdefault(kind, []).append(s)
        plans: dict[int, Reduction] = {}
        for (size, count), own in made.items():  # segments of a kind merge together
            at = (torch.tensor(own) * self.segment)[:, None] + torch.arange(size)
            part = x[:, at.to(x.device, non_blocking=True)].flatten(2, 3)
            plan = self.merged(part.flatten(0, 1), count)
            plans |= {s: plan.rows(slice(i, None, len(own))) for i, s in enumerate(own)}
        for s, size in enumerate(sizes):
            assign.append(plans[s].assign + before)
            source.append(plans[s].source + first * n)
            first, before = first + size, before + counts[s]
        plan = Reduction.merge(torch.cat(assign, dim=1), torch.cat(source, dim=1), positions=self.policy, covers=True)
        return self.in_front(levels, plan, tokens) if levels else plan

    def merged(self, x: Tensor, k: int) -> Reduction:
        """The plan that leaves ``k`` tokens of each of the segments ``x`` (S, N, D)."""
        tokens = VisualTokens(x, Layout(1, x.shape[1]))
        plan = in_rounds(tokens, halvings(x.shape[1], k), lambda f, r, _: match(metric(f, self.groups), r))
        return ordered(plan, self.output_order)

    @staticmethod
    def in_front(levels: list[Tensor], plan: Reduction, tokens: VisualTokens) -> Reduction:
        """``plan`` with the mean [CLS] row of each of ``levels``, (B, T, P, C), in front."""
        rows = torch.stack([level[:, :, 0].float().mean(dim=1) for level in levels], dim=1)
        summary = tokens.projector(rows.to(levels[0].dtype)).to(tokens.features.dtype)
        return Reduction(
            source=torch.cat([plan.source.new_full(summary.shape[:2], -1), plan.source], dim=1),
            assign=plan.assign + len(levels),
            features=torch.cat([summary, plan.carry(tokens.features)], dim=1),
            positions=plan.positions,
        )


def has_rows(facts: ModelFacts) -> bool:
    """Whether there are [CLS] rows of as many blocks as the paper takes, which the projector can be given."""
    return facts.has_cls and facts.tower_depth >= GLOBAL and facts.patches_per_token == 1


def metric(x: Tensor, groups: int) -> Tensor:
    """(B, N, C / groups) what tokens ``x`` (B, N, C) are compared by."""
    return x.detach().float().unflatten(2, (groups, -1)).mean(dim=2)


def shares(sizes: list[int], n: int, k: int) -> list[int]:
    """``k`` tokens shared among segments of ``sizes`` frames of ``n`` tokens: at least one each, the rest in proportion."""
    rest = k - len(sizes)
    counts = [1 + more for more in largest_remainder([Fraction(rest * size, sum(sizes)) for size in sizes], rest)]
    over = sum(max(0, count - size * n) for count, size in zip(counts, sizes))
    counts = [min(count, size * n) for count, size in zip(counts, sizes)]
    for i, size in enumerate(sizes):
        more = min(over, size * n - counts[i])
        counts[i], over = counts[i] + more, over - more
    return counts
