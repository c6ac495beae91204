"""TempMe: tokens of a video merge within frames, then neighbouring frames become clips, across and within which they merge on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.matching import best_pairs
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import rounded
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import ascending, in_range, whole

BLOCKS = (8, 9, 10)  # of 12
MOST = 0.5  # of the rows of a clip that merge at once, where a budget decides


class Merges(NamedTuple):
    """What merges in a block: ``across`` clips in front of its attention, ``within`` behind it; ``left``, rows of a sequence."""

    across: int
    within: int
    left: int


@dataclass(frozen=True, kw_only=True)
class TempMe(Method):
    """The training-free part of TempMe. Up to the first of ``blocks`` every block merges the ``r`` most alike pairs of patches of
    each frame, by keys. In front of each of ``blocks`` neighbouring clips become one, [CLS] rows first, and their most alike rows
    merge, by the rows themselves; from there on blocks merge within clips, by keys. [CLS] rows never merge, so that there is
    one of each frame in the end.

    Attributes:
        keep: fraction of all patches of a video, or their count per frame on average, that leave the tower, hit exactly, by
            merging other shares across clips, a third of that within, and ``r`` or fewer pairs; None: ``r`` and the shares given.
        r: pairs that merge in each block before ``blocks``.
        blocks: where clips are joined, 0-based, ascending; None: 8, 9 and 10 of 12, in proportion.
        joins: how many become one at each.
        cross: share of the rows of a joined clip that merges in front of the block; ``intra``, behind its attention, and in every
            later block.
        frames: of each video, those that follow one another in the batch; None: as many as one clip holds in the end.
        proportional: attention counts a token as often as its size.

    Source: Shen et al., "TempMe: Video Temporal Token Merging for Efficient Text-Video Retrieval", ICLR 2025, arXiv 2409.01156,
        section 3.
    Departures from the release: its trained parts, LoRA and temporal embeddings, which begin at zero, are left out; similarities
        are float32 and ties go to the lowest index; blocks before the clips never merge more than there are pairs.
    """

    name = "tempme"
    title = "merge within frames, then join frames to clips and merge across and within them"
    paper = "arXiv 2409.01156"
    stages = ("encoder",)
    looks_at = "keys of every block, rows where frames are joined"
    media = ("video",)

    keep: float | int | None = None
    r: int = 2
    blocks: tuple[int, ...] | None = None
    joins: tuple[int, ...] = (2, 2, 3)
    cross: float = 0.3
    intra: float = 0.1
    frames: int | None = None
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("r", self.r, 0, " (pairs that merge in a block)")
        if not isinstance(self.joins, tuple) or not self.joins:
            raise ValueError(f"joins={self.joins!r}; allowed: a tuple of ints >= 2, such as (2, 2, 3)")
        for clips in self.joins:
            whole("joins", clips, 2, f" in each place, in joins={self.joins!r}")
        if self.blocks is not None:
            ascending("blocks", self.blocks, 0, "None: blocks 8, 9 and 10 of 12, in proportion")
            if len(self.blocks) != len(self.joins):
                raise ValueError(
                    f"blocks={self.blocks!r} with joins={self.joins!r}; allowed: one number for each block"
                )
        in_range("cross", self.cross, 0.0, MOST)
        in_range("intra", self.intra, 0.0, MOST)
        whole("frames", self.frames, 1, none=True)
        if self.frames is not None and self.frames % math.prod(self.joins):
            raise ValueError(
                f"frames={self.frames} with joins={self.joins!r}; allowed: a multiple of {math.prod(self.joins)}, the frames "
                "that a clip holds in the end"
            )

    @property
    def budget(self) -> Budget:
        """The patches of a frame that leave, on average; all of them, as an upper bound, where shares decide."""
        return Budget(1.0 if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        return self.keep is not None and self.budget.count(n) >= n

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.feature_block + 1
        at = self.joined_blocks(depth)
        grid = facts.tower_grid
        counts = None if grid is None else self.counts(math.prod(grid), facts.tower_prefix, depth)
        steps: list[Step] = []
        for block in range(depth):
            merges = None if counts is None else counts[block]
            if block in at:
                frames, amount = self.joins[at.index(block)], None if merges is None else merges.across
                steps.append(Step("encoder", layer=block, when="before", joins=frames, amount=amount))
            amount = None if merges is None else merges.within
            steps.append(
                Step("encoder", layer=block, needs=(Keys(block),), amount=amount, proportional=self.proportional)
            )
        return tuple(steps)

    def joined_blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks in front of which clips are joined, in a tower of ``depth``."""
        if self.blocks is not None:
            if self.blocks[-1] >= depth:
                raise ValueError(f"blocks={self.blocks}; allowed: 0 to {depth - 1}, the blocks of this tower")
            return self.blocks
        most = len(self.joins)
        if depth < most:
            raise ValueError(f"joins={self.joins} in a tower of {depth} blocks; allowed: at most one number for each")
        named = BLOCKS if most == len(BLOCKS) else tuple(12 - most - 1 + i for i in range(most))
        return tuple(min(round(block / 12 * depth), depth - most + i) for i, block in enumerate(named))

    def counts(self, patches: int, prefix: int, depth: int) -> Sequence[Merges]:
        """By block, what merges of frames of ``patches`` behind ``prefix`` rows.

        Errors: ``ValueError`` where a budget cannot be reached.
        """
        if self.keep is None:
            return self.merging(patches, prefix, depth, self.r, self.cross, self.intra)
        frames = math.prod(self.joins)
        wanted = (
            self.budget.count(patches) * frames
            if isinstance(self.keep, int)
            else Budget(self.keep).count(patches * frames)
        )
        wanted += prefix * frames
        low, high = 0.0, MOST
        r = max(
            (r for r in range(self.r + 1) if self.merging(patches, prefix, depth, r, 0, 0)[-1].left >= wanted),
            default=0,
        )
        found = self.merging(patches, prefix, depth, r, MOST, MOST / 3)
        if found[-1].left > wanted:
            raise ValueError(
                f"keep={self.keep!r} of {frames} frames of {patches} patches; allowed: at least "
                f"{(found[-1].left - prefix * frames) / (patches * frames):.3f} of them; ask for more, or a larger r"
            )
        for _ in range(40):
            share = (low + high) / 2
            tried = self.merging(patches, prefix, depth, r, share, share / 3)
            low, high = (share, high) if tried[-1].left > wanted else (low, share)
        found = self.merging(patches, prefix, depth, r, high, high / 3)
        return relaxed(found, wanted - found[-1].left, self.joined_blocks(depth), self.joins)

    def merging(self, patches: int, prefix: int, depth: int, r: int, cross: float, intra: float) -> list[Merges]:
        """The same of ``r`` pairs and shares that are given."""
        at, found = self.joined_blocks(depth), []
        n = patches + prefix
        for block in range(depth):
            across = 0
            if block in at:
                clips = self.joins[at.index(block)]
                n, prefix = n * clips, prefix * clips
                across = min(rounded(n, cross), (n - prefix) // 2)
                n -= across
            within = min(r if block < at[0] else rounded(n, intra), (n - prefix) // 2)
            n -= within
            found.append(Merges(across, within, n))
        return found

    def reduce(self, tokens: VisualTokens) -> Reduction:
        frames = len(tokens.features) * tokens.layout.frames
        if self.frames is not None and frames % self.frames:
            raise ValueError(
                f"frames={self.frames}, but {frames} arrive; allowed: whole videos, the frames of each one after another"
            )
        if not tokens.amount:
            return Reduction.identity(tokens, positions=self.positions)
        metric = next(iter(tokens.signals.values()), tokens.features)  # keys, or, in front of a block, its rows
        return pairs_of_clip(metric, tokens.amount, tokens.prefix, tokens.size)


def pairs_of_clip(metric: Tensor, r: int, prefix: int, size: Tensor) -> Reduction:
    """The ``r`` most alike pairs of ``metric`` (B, N, C), whose first ``prefix`` rows never merge, as means by ``size`` (B, N).

    Places are counted with the prefix: those of even number join those of odd number where it is even, and else the others.
    """
    odd, rows = prefix % 2, torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1)
    pairs = best_pairs(metric, rows[:, prefix + odd :: 2], rows[:, prefix + 1 - odd :: 2], r)
    return pairs._replace(alone=pairs.alone.sort(dim=1).values).merge(prefix, weight=size)


def relaxed(found: list[Merges], spare: int, at: tuple[int, ...], joins: tuple[int, ...]) -> list[Merges]:
    """``found`` with ``spare`` merges fewer, taken from the last blocks that run on the joined clips."""
    for block in range(len(found) - 1, at[-1] - 1, -1):
        merges = found[block]
        within = min(spare, merges.within)
        across = min(spare - within, merges.across)
        spare -= within + across
        found[block] = Merges(merges.across - across, merges.within - within, merges.left)
    assert spare == 0, "fewer than a block merges"
    return found
