"""The rows of one pass through a vision tower: what was merged, where each row sits, how wide every block was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.layout import Layout
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import Reduction


@dataclass
class TowerState:
    """The tokens of one pass through the tower.

    Attributes:
        size: (B, N) float, rows of the unmerged tower each current row stands for.
        assign: (B, N0) long, current row of each row of the unmerged tower.
        source: (B, N) long, row of the unmerged tower each current one sits at.
        layouts: where the patches of each image are.
        entered: per block, ``assign`` when the block was entered; ``widths``, the rows there were.
    """

    size: Tensor
    assign: Tensor
    source: Tensor
    layouts: list[Layout]
    entered: list[Tensor] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    history: list[StageTrace] = field(default_factory=list)
    touched: bool = False
    alike: bool = True  # whether all images have equally many rows

    @classmethod
    def start(cls, x: Tensor, layouts: list[Layout]) -> TowerState:
        rows = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return cls(size=torch.ones(x.shape[:2], device=x.device), assign=rows, source=rows, layouts=layouts)

    @classmethod
    def joined(cls, states: list[TowerState]) -> TowerState:
        """The images of several passes as one."""
        if len({state.size.shape[1] for state in states}) > 1:
            raise ValueError(
                "images of one prompt were merged to different numbers of tokens in separate passes of the tower; encode them "
                "in one call, or use a method of stage 'projector' or 'llm'"
            )

        def cat(tensors: list[Tensor]) -> Tensor:
            return torch.cat(tensors)

        history = []
        for passages in zip(*(state.history for state in states)):
            source = cat([p.source for p in passages])
            history.append(replace(passages[0], assign=cat([p.assign for p in passages]), seats=source, source=source))
        return cls(
            size=cat([state.size for state in states]),
            assign=cat([state.assign for state in states]),
            source=cat([state.source for state in states]),
            layouts=[layout for state in states for layout in state.layouts],
            history=history,
            touched=True,
            alike=all(state.alike for state in states),
        )

    def apply(self, reduction: Reduction, layer: int, method: str) -> None:
        k, joined = reduction.num_kept, reduction.assign.clamp_min(0)
        mass = self.size * (reduction.assign >= 0)
        self.size = torch.zeros(len(self.size), k, device=self.size.device).scatter_add_(1, joined, mass)
        gone = self.assign < 0
        self.assign = reduction.assign.gather(1, self.assign.clamp_min(0)).masked_fill(gone, -1)
        self.source = self.source.gather(1, reduction.source)
        self.history.append(
            StageTrace("encoder", layer, method, self.assign, self.source, self.source, None, reduction.role_names)
        )
        self.touched = True

    def patches(self, prefix: int) -> list[StageTrace]:
        """What happened, counted in patches: ``prefix`` rows left out."""

        def cut(x: Tensor) -> Tensor:
            return (x[:, prefix:] - prefix).clamp_min(-1)

        return [
            replace(p, assign=cut(p.assign), seats=cut(p.source).sort(dim=1).values, source=cut(p.source))
            for p in self.history
        ]

    def counts(self, depth: int) -> list[tuple[int, int]]:
        """Rows that attention and MLP of each block work on."""
        final = self.size.shape[1]
        entered = [int(n) for n in self.widths[:depth]]
        return list(zip(entered, [*entered[1:], final]))

    def full_width(self, states: Any, *, averaged: bool = False) -> Any:
        """Recorded hidden states (after 0, 1, 2, ... blocks; entries may be None) at full width.

        Args:
            averaged: every row of the unmerged tower is given the mean of all that its final row stands for, so that states
                of several blocks tell of the same groups.
        """
        full, k = self.assign.shape[1], self.size.shape[1]
        maps, widths = [*self.entered, self.assign], [*self.widths, k]
        wide = []
        for i, state in enumerate(states):
            at = min(i, len(maps) - 1)
            if state is not None and state.shape[1] != full:
                state = rows_of(state, maps[at])
            if state is not None and averaged and widths[at] != k:
                state = rows_of(group_mean(state, self.assign, k), self.assign)
            wide.append(state)
        return tuple(wide)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of ``x`` (B, N, D); -1, a token that is gone, gives the first row."""
    return take_rows(x, index.clamp_min(0))
