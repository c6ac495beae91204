"""STORM's operators: average neighbouring frames and places, then leave out frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.methods.pool_time import over_time
from tokenreduce.methods.sample_frames import middles
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole
from tokenreduce.whole_frames import by_first, per_frame


@dataclass(frozen=True, kw_only=True)
class Storm(Method):
    """Average every ``temporal_pool`` frames and every ``spatial_pool`` x ``spatial_pool`` places, then take some of the frames.

    Attributes:
        keep: None, what the operators leave; or a budget, a fraction of the tokens of a video or a count per video, which pooling
            over time fills exactly (``pool_time``), in place of them.
        temporal_pool, spatial_pool: frames, and rows and columns, that are averaged; the last ones of fewer.
        sample: of the averaged frames, every ``stride``-th from ``offset`` on, or ``count`` from the middle of equal stretches.

    Source: Jiang et al., "STORM: Token-Efficient Long Video Understanding for Multimodal LLMs", ICCV 2025, arXiv 2503.04130.
    Departures: no release was read. The paper trains a layer that mixes frames before pooling, and the pooling with it; without
        that layer these are controls.
    """

    name = "storm"
    title = "video: pool over time, sample frames"
    paper = "arXiv 2503.04130"
    media = ("video",)
    stages = ("projector",)
    looks_at = "nothing"

    keep: float | int | None = None
    temporal_pool: int = 4
    spatial_pool: int = 1
    sample: Literal["none", "stride", "count"] = "none"
    stride: int = 2
    offset: int = 0
    count: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("sample", self.sample, ("none", "stride", "count"))
        for argument, low in (("temporal_pool", 1), ("spatial_pool", 1), ("stride", 1), ("offset", 0)):
            whole(argument, getattr(self, argument), low)
        whole("count", self.count, 1, none=self.sample != "count")
        if self.keep is not None and (self.sample != "none" or self.spatial_pool != 1):
            raise ValueError(
                f"keep={self.keep!r} beside sample={self.sample!r}, spatial_pool={self.spatial_pool}: a budget is filled by "
                "pooling over time alone; allowed: keep=None, and the operators decide"
            )

    @property
    def budget(self) -> Budget:
        return Budget(1.0 if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        return self.keep is not None and super().is_identity(n)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        per_frame(tokens, self.name)
        if self.keep is not None:
            return over_time(tokens, self.budget.count(tokens.num_tokens), self)
        assign, source = self.pooled(tokens.layout)
        batch, device = len(tokens.features), tokens.features.device
        rows = (x.to(device, non_blocking=True).expand(batch, -1) for x in (assign, source))
        return Reduction.merge(*rows, positions=self.positions)

    def pooled(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Row (T * N,) and source (K,) of the tokens of ``layout``.

        Errors: ``ValueError`` where sampling leaves no frame.
        """
        n, side = layout.num_tokens // layout.frames, self.spatial_pool
        cell = torch.arange(n) if layout.cells is None else torch.tensor(layout.cells[:n])
        row, column = cell // layout.width // side, cell % layout.width // side
        frame = torch.arange(layout.frames) // self.temporal_pool
        group = frame[:, None] * layout.height * layout.width + row * layout.width + column
        left = self.sampled(int(frame[-1]) + 1)
        kept = torch.isin(frame, left).repeat_interleave(n)
        assign = torch.full((layout.num_tokens,), -1)
        index = kept.nonzero().flatten()
        assign[index], source = by_first(group.flatten()[index])
        return assign, index[source]

    def sampled(self, frames: int) -> Tensor:
        """Which of ``frames`` averaged frames are taken."""
        if self.sample == "stride" and self.offset >= frames:
            raise ValueError(
                f"offset={self.offset} of {frames} frames leaves none; allowed for this video: 0 to {frames - 1}"
            )
        if self.sample == "count" and self.count is not None and self.count < frames:
            return middles(frames, self.count)
        return torch.arange(frames)[self.offset :: self.stride] if self.sample == "stride" else torch.arange(frames)
