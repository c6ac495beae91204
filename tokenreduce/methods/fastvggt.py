"""FastVGGT: in front of attention over frames most tokens merge into those of a first frame and of a grid; behind it each is
given a copy of its row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.attention_rows import AttentionRows
from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.fingerprint import hash_uniform
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole

SALIENT = 0.1  # of all tokens


class Shape(NamedTuple):
    """``frames`` of ``special`` rows and ``height`` x ``width`` patches each, frame by frame."""

    frames: int
    special: int
    height: int
    width: int

    @property
    def each(self) -> int:
        return self.special + self.height * self.width

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Frames behind the first, and the 2 x 2 blocks of each, down and across."""
        return self.frames - 1, self.height // 2, self.width // 2


@dataclass(frozen=True, kw_only=True)
class FastVGGT(Method):
    """From one block on, ``joins`` neighbouring frames are one sequence, and attention over it runs on fewer rows: the first
    frame, the special rows of all, and one patch of each 2 x 2 block are destinations; every other token merges into the most
    alike of them, but for every tenth, which stays as it is. Behind the attention each place is given a copy of its row, so that
    counts outside are what they were.

    Attributes:
        keep: of all rows of a sequence, so many do not merge at least; destinations and tenths stay whatever it is.
        joins: frames of a sequence. ``block``, in front of which they are joined, 0-based; None: half of them run on frames.
        protect: whether every tenth row stays as it is: it is a row of its own also where it is a destination, as released.
        cells: which patch of each block of 2 x 2 is a destination: a ``random`` one, by ``seed``, the same in every block of the
            encoder, or the ``first``.
        odd: where a frame has an odd number of columns, blocks are ``cut`` there, or lie as ``released``, row after row of their
            own length.

    Source: Shen et al., "FastVGGT: Training-Free Acceleration of Visual Geometry Transformer", 2025, arXiv 2509.02560, section 3.
    Departures from the release: cosines are float32, not bfloat16; every video of a batch has tokens of its own that merge.
    """

    name = "fastvggt"
    title = "merge around attention over frames: the first frame and a grid stay, results are copied back"
    paper = "arXiv 2509.02560"
    stages = ("encoder",)
    looks_at = "rows that enter the attention"
    media = ("video",)

    keep: float = 0.1
    joins: int = 4
    block: int | None = None
    protect: bool = True
    cells: Literal["random", "first"] = "random"
    odd: Literal["cut", "released"] = "cut"
    seed: int = 33

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep, float):
            raise ValueError(f"keep={self.keep!r}; allowed: a float in (0, 1], the share of rows that does not merge")
        whole("joins", self.joins, 2, " (frames of a sequence)")
        whole("block", self.block, 0, none=True)
        whole("seed", self.seed, 0)
        choice("cells", self.cells, ("random", "first"))
        choice("odd", self.odd, ("cut", "released"))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.feature_block + 1
        block = depth // 2 if self.block is None else self.block
        first = Step("encoder", layer=block, when="before", joins=self.joins)
        return (first, *(Step("encoder", layer=b, when="attention") for b in range(block, depth)))

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return Reduction.identity(tokens)  # frames are joined, no row leaves

    def around(self, tokens: VisualTokens) -> AttentionRows:
        layout, frames, x = tokens.layout, tokens.layout.frames, tokens.features
        shape = Shape(frames, tokens.prefix // frames, layout.height, layout.width)
        if shape.each * frames != tokens.num_tokens:
            raise ValueError(
                f"{tokens.num_tokens} rows of {frames} frames of {shape.each}: some merged or left before; allowed with "
                "method='fastvggt': methods behind the encoder, which find every patch"
            )
        order = _frame_by_frame(shape).to(x.device, non_blocking=True)
        frame_by_frame, place = self.merged(x[:, order], shape, self.chosen(shape)), order.argsort()
        assign, back = (rows[:, place] for rows in (frame_by_frame.assign, frame_by_frame.back))
        return AttentionRows(assign, frame_by_frame.means, order[frame_by_frame.alone], back)

    def chosen(self, shape: Shape) -> Tensor:
        """(frames - 1, height // 2, width // 2) long on the host, 2 y + x of the destination in each block."""
        if self.cells == "first":
            return torch.zeros(shape.blocks, dtype=torch.long)
        drawn = hash_uniform(torch.zeros(1, dtype=torch.long), math.prod(shape.blocks), self.seed)
        return (drawn * 4).long().view(shape.blocks)

    def merged(self, metric: Tensor, shape: Shape, cells: Tensor) -> AttentionRows:
        """Of rows ``metric`` (B, N, C) of ``shape``, frame by frame; ``cells`` as ``chosen``."""
        batch, n = metric.shape[:2]
        is_hub = self.destinations(shape, cells)
        tenths = every_tenth(n) if self.protect else torch.zeros(0, dtype=torch.long)
        stays = torch.zeros_like(is_hub).index_fill(0, tenths, True)
        free = int((~is_hub & ~stays).sum())
        r = min(int((1 - self.keep) * n), free)
        hubs, sources, alone, stays = (
            x.to(metric.device, non_blocking=True)
            for x in (is_hub.nonzero()[:, 0], (~is_hub).nonzero()[:, 0], tenths, stays[~is_hub])
        )
        best, partner = bipartite_matching(metric[:, sources], metric[:, hubs])
        order = best.masked_fill(stays, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        left = sources[order[:, r:free].sort(dim=1).values]
        rows = torch.cat([left, hubs.expand(batch, -1)], dim=1)
        place = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        assign = torch.full((batch, n), -1, device=rows.device).scatter(1, rows, place)
        leaving = order[:, :r]
        assign = assign.scatter(1, sources[leaving], partner.gather(1, leaving) + left.shape[1])
        own = torch.arange(len(alone), device=rows.device).expand(batch, -1)
        back = assign.scatter(1, alone.expand(batch, -1), own + rows.shape[1])
        return AttentionRows(assign, rows.shape[1], alone.expand(batch, -1), back)

    def destinations(self, shape: Shape, cells: Tensor) -> Tensor:
        """(N,) bool on the host, frame by frame; ``cells`` as ``chosen``."""
        frames, down, across = shape.blocks
        grid = F.one_hot(cells, 4).bool().unflatten(3, (2, 2)).transpose(2, 3).reshape(frames, 2 * down, 2 * across)
        patches = cells.new_zeros((frames, shape.height, shape.width), dtype=torch.bool)
        if self.odd == "cut":
            patches[:, : 2 * down, : 2 * across] = grid
        patches = patches.flatten(1)
        if self.odd == "released":
            patches[:, : grid[0].numel()] = grid.flatten(1)
        special = patches.new_ones(frames, shape.special)
        return torch.cat([patches.new_ones(shape.each), torch.cat([special, patches], dim=1).flatten()])


def _frame_by_frame(shape: Shape) -> Tensor:
    """(N,) long, the rows of a sequence, the special ones of all frames first, in the order of frames."""
    frame = torch.arange(shape.frames)[:, None]
    special = frame * shape.special + torch.arange(shape.special)
    patches = shape.height * shape.width
    return torch.cat([special, shape.frames * shape.special + frame * patches + torch.arange(patches)], dim=1).flatten()


def every_tenth(n: int) -> Tensor:
    """(n // 10,) long, evenly from the first of ``n`` rows on."""
    k = int(SALIENT * n)
    return torch.arange(k) * max(1, n // max(k, 1))
