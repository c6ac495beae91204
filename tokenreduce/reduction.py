"""What a method answers with: which tokens survive and who joins whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.tokens import VisualTokens

PositionPolicy = Literal["keep", "renumber"]
DROPPED = -1


@dataclass
class Reduction:
    """A plan: which rows come out, where each sits, and which tokens it stands for.

    Attributes:
        source: (B, K) long. Row k sits at the position of input token ``source[b, k]``; -1 marks a summary token that
            sits at no token of its own and takes a free place of the image.
        assign: (B, N) long. Row that input token n is represented by, or -1 when it is dropped.
        merges: True when a row is the weighted mean of the tokens assigned to it, False when it is its source, unchanged.
        weight: (B, N) float, relative weight of token n in its row; None: equal weights.
        features: (B, K, D) features of the rows, only where they are neither their source nor such a mean.
        positions: ``keep`` the position id of the source, or ``renumber`` the shortened sequence 0, 1, 2, ...
        role: (B, N) int of the *input* tokens, meanings in ``role_names`` (None: roles stay what they were).
        score: (B, N) float of the *input* tokens, what they were ranked by, higher is kept first (None: no ranking). Only
            noted in the trace.
        valid: (B, K) bool for data-dependent counts: rows that really exist, trailing rows False. None: all rows.
        in_order: True when rows are unchanged tokens in ascending source order (``select`` sets it).
    """

    source: Tensor
    assign: Tensor
    merges: bool = False
    weight: Tensor | None = None
    features: Tensor | None = None
    positions: PositionPolicy = "keep"
    role: Tensor | None = None
    role_names: tuple[str, ...] = ()
    score: Tensor | None = None
    valid: Tensor | None = None
    in_order: bool = False

    @classmethod
    def select(cls, keep: Tensor, n: int, **more: Any) -> Reduction:
        """Keep the tokens ``keep`` (B, K) of ``n`` and drop the rest; rows come out in source order."""
        source = keep.sort(dim=1).values
        assign = torch.full((source.shape[0], n), DROPPED, dtype=torch.long, device=source.device)
        rows = torch.arange(source.shape[1], device=source.device).expand_as(source)
        return cls(source=source, assign=assign.scatter_(1, source, rows), in_order=True, **more)

    @classmethod
    def top(cls, score: Tensor, k: int, **more: Any) -> Reduction:
        """Keep the ``k`` tokens of highest ``score`` (B, N); ties go to the lowest index."""
        return cls.select(top_k(score, k), score.shape[1], score=score, **more)

    @classmethod
    def merge(cls, assign: Tensor, source: Tensor, weight: Tensor | None = None, **more: Any) -> Reduction:
        """Replace each group ``assign`` (B, N) by its mean, weighted by ``weight`` (B, N); group r sits at ``source[:, r]``."""
        return cls(source=source, assign=assign, merges=True, weight=weight, **more)

    @classmethod
    def identity(cls, tokens: VisualTokens, **more: Any) -> Reduction:
        """Keep every token, for a step that only gives roles."""
        batch, n = tokens.features.shape[:2]
        rows = torch.arange(n, device=tokens.features.device).expand(batch, n)
        return cls(source=rows, assign=rows, in_order=True, **more)

    def carry(self, x: Tensor) -> Tensor:
        """The rows (B, K, D) that the input rows ``x`` (B, N, D) become: selected or averaged."""
        if self.merges:
            return group_mean(x, self.assign, self.num_kept, self.weight)
        return take_rows(x, self.source)

    @property
    def num_kept(self) -> int:
        return self.source.shape[1]

    def does_nothing(self, n: int) -> bool:
        """Whether this plan leaves all ``n`` tokens as they are and says nothing new about them."""
        unchanged = self.in_order and self.num_kept == n and self.features is None and not self.merges
        return unchanged and self.valid is None and self.role is None and self.positions == "keep"

    def carry_along(self, x: Tensor) -> Tensor:
        """The rows (B, K, E) of values ``x`` (B, N, E) that share the tokens' fate but not their features."""
        if self.merges:
            return self.carry(x)
        own = take_rows(x, self.source.clamp_min(0))
        if self.features is None:
            return own
        return torch.where((self.source < 0)[..., None], group_mean(x, self.assign, self.num_kept), own)

    def check(self, tokens: VisualTokens) -> Reduction:
        """Raise if this plan does not fit ``tokens``; shapes only, so that nothing waits for a device."""
        batch, n = tokens.features.shape[:2]
        k = self.num_kept
        if self.source.shape[0] != batch or k > n:
            raise ValueError(
                f"Reduction.source has shape {tuple(self.source.shape)}; allowed: ({batch}, K) with K <= {n}"
            )
        if tuple(self.assign.shape) != (batch, n):
            raise ValueError(f"Reduction.assign has shape {tuple(self.assign.shape)}; allowed: ({batch}, {n})")
        if self.features is not None and tuple(self.features.shape) != (batch, k, tokens.features.shape[2]):
            raise ValueError(
                f"Reduction.features has shape {tuple(self.features.shape)}; "
                f"allowed: ({batch}, {k}, {tokens.features.shape[2]})"
            )
        if self.positions not in ("keep", "renumber"):
            raise ValueError(f"Reduction.positions={self.positions!r}; allowed: 'keep', 'renumber'")
        return self
