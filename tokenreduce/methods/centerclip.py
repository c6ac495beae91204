"""CenterCLIP: from one block on, neighbouring frames are one sequence of the medoids of their patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.budgets import Budget
from tokenreduce.k_medoids import (
    Distance,
    Medoids,
    distances,
    k_medoids,
    longest,
    spectral_distances,
    spectral_rows,
    unit,
)
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole


@dataclass(frozen=True, kw_only=True)
class CenterCLIP(Method):
    """In front of one block ``joins`` neighbouring frames become one sequence: the mean of their [CLS] rows, then K patches that
    stand for all of them, found by k-medoids from a start of patches far apart. The blocks from there on run once per segment.

    Attributes:
        keep: fraction of the patches of a segment, or their count per frame on average; None: as many as one frame has.
        clusters: K instead of ``keep``.
        joins: frames of a segment. The paper's S segments of T frames are ``joins=T // S``.
        block: in front of which this happens, 0-based; None: half of them run on frames.
        frames: of each video, those that follow one another in the batch, so that no segment holds frames of two; None: not
            looked at.
        clustering: of the rows as they enter the block (``medoids``), or of the eigenvectors of their graph (``spectral``).
        distance: ``euclidean``, or ``cosine``, one less the cosine; ``norm_p``, the exponent of the first, 1 in one script.
        pre_norm: divide rows by their norm before.
        sigma: width of the graph's kernel; ``neighbours``, heaviest edges that each patch keeps; None: all.
        aggregation: what a row becomes: its ``medoid``, or the ``mean`` of the patches that it stands for.

    Source: Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, arXiv 2205.00823,
        section 3.
    Departures from the release: sums of distances within 1e-6 are ties, to the lowest index, and norms of unit rows within 1e-5;
        other members of no cluster never count, in any precision; the graph has no mask of near places and times.
    """

    name = "centerclip"
    title = "medoids of the patches of neighbouring frames, which go on as one sequence"
    paper = "arXiv 2205.00823"
    stages = ("encoder",)
    looks_at = "rows of one block, in front of it"
    media = ("video",)

    keep: float | int | None = None
    clusters: int | None = None
    joins: int = 3
    block: int | None = None
    frames: int | None = None
    clustering: Literal["medoids", "spectral"] = "medoids"
    distance: Distance = "euclidean"
    norm_p: float = 2.0
    pre_norm: bool = False
    sigma: float = 2.0
    neighbours: int | None = None
    aggregation: Literal["medoid", "mean"] = "medoid"

    def __post_init__(self) -> None:
        whole("joins", self.joins, 2, " (frames of a segment)")  # by which the budget divides
        super().__post_init__()
        whole("clusters", self.clusters, 1, " (medoids of a segment)", none=True)
        whole("block", self.block, 0, none=True)
        whole("frames", self.frames, 1, none=True)
        whole("neighbours", self.neighbours, 1, none=True)
        choice("clustering", self.clustering, ("medoids", "spectral"))
        choice("distance", self.distance, ("euclidean", "cosine"))
        choice("aggregation", self.aggregation, ("medoid", "mean"))
        for name in ("norm_p", "sigma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r}; allowed: a number above 0")
        if self.frames is not None and self.frames % self.joins:
            raise ValueError(
                f"frames={self.frames} with joins={self.joins}; allowed: a multiple of {self.joins}, the frames of a segment"
            )

    @property
    def budget(self) -> Budget:
        """What ``keep`` says; all, as an upper bound, where ``clusters`` decide."""
        return Budget(self.keep if self.keep is not None else 1.0 if self.clusters else 1 / self.joins)

    def is_identity(self, n: int) -> bool:
        return self.keep is not None and self.clusters is None and self.budget.count(n) >= n

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        depth = facts.feature_block + 1
        block = depth // 2 if self.block is None else self.block
        return (Step("encoder", layer=block, when="before", joins=self.joins, prefix="mean"),)

    def count(self, patches: int) -> int:
        """K of a segment of so many ``patches``."""
        if self.clusters is not None:
            return min(self.clusters, patches)
        whole_frame = isinstance(self.keep, int)
        return min(
            self.budget.count(patches // self.joins) * self.joins if whole_frame else self.budget.count(patches),
            patches,
        )

    def reduce(self, tokens: VisualTokens) -> Reduction:
        frames, p = len(tokens.features) * tokens.layout.frames, tokens.prefix
        if self.frames is not None and frames % self.frames:
            raise ValueError(
                f"frames={self.frames}, but {frames} arrive; allowed: whole videos, the frames of each one after another"
            )
        x, k = tokens.features[:, p:].float(), self.count(tokens.layout.num_tokens)
        if k >= x.shape[1]:
            return Reduction.identity(tokens, positions=self.positions)
        found = self.clustered(x, k)
        front = torch.arange(p, device=x.device).expand(len(x), -1)
        return Reduction(
            torch.cat([front, found.medoids + p], dim=1),
            torch.cat([front, found.label + p], dim=1),
            merges=self.aggregation == "mean",
            covers=True,
            positions=self.positions,
        )

    def clustered(self, x: Tensor, k: int) -> Medoids:
        """``k`` medoids of the patches ``x`` (B, N, C) float32 of each segment."""
        x = unit(x) if self.pre_norm else x
        if self.clustering == "medoids":
            return k_medoids(distances(x, self.distance, self.norm_p), longest(x, alike=self.pre_norm), k)
        rows = spectral_rows(x, k, self.sigma, self.neighbours)
        return k_medoids(spectral_distances(rows), longest(rows, alike=True), k)
