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
        own: of each image, the rows of the unmerged tower that are its own, ascending; None: all. The others fill up a batch.
        numbers: rows there are of each image; ``size`` is as wide as the most, and rows beyond an image's own are absent.
        entered: per block, ``assign`` when the block was entered; ``came``, ``numbers`` at that time.
        history: what happened; ``left``, ``numbers`` after each time.
    """

    size: Tensor
    assign: Tensor
    source: Tensor
    layouts: list[Layout]
    numbers: list[int]
    own: list[list[int]] | None = None
    entered: list[Tensor] = field(default_factory=list)
    came: list[list[int]] = field(default_factory=list)
    history: list[StageTrace] = field(default_factory=list)
    left: list[list[int]] = field(default_factory=list)
    touched: bool = False
    gone: bool = False  # whether a row may be in none by now
    alike: bool = True  # whether all images have equally many rows

    @classmethod
    def start(cls, x: Tensor, layouts: list[Layout]) -> TowerState:
        rows = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        numbers = [x.shape[1]] * len(x)
        return cls(torch.ones(x.shape[:2], device=x.device), assign=rows, source=rows, layouts=layouts, numbers=numbers)

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
            numbers=[number for state in states for number in state.numbers],
            history=history,
            left=[[n for own in passages for n in own] for passages in zip(*(state.left for state in states))],
            touched=True,
            alike=all(state.alike for state in states),
        )

    def history_of(self, images: list[int]) -> list[StageTrace]:
        """What happened to ``images``, of equally many rows, counted in their own rows."""
        device = self.assign.device
        pick = torch.tensor(images, device=device)
        own = None if self.own is None else torch.tensor([self.own[image] for image in images], device=device)
        found = []
        for passage, left in zip(self.history, self.left):
            assign, source = passage.assign[pick], passage.source[pick, : left[images[0]]]
            if own is not None:
                assign, source = assign.gather(1, own), torch.searchsorted(own, source.contiguous())
            found.append(replace(passage, assign=assign, seats=source, source=source))
        return found

    def apply(self, reduction: Reduction, layer: int, method: str, numbers: list[int] | None = None) -> None:
        """What becomes of the rows by ``reduction``, and, where they differ, of the ``numbers`` of the images."""
        k, joined, mass = reduction.num_kept, reduction.assign, self.size
        if not reduction.covers:
            joined, mass = joined.clamp_min(0), mass * (joined >= 0)
        self.size = torch.zeros(len(mass), k, device=mass.device).scatter_add_(1, joined, mass)
        before = self.assign
        self.assign = reduction.assign.gather(1, before.clamp_min(0) if self.gone else before)
        if self.gone:
            self.assign = self.assign.masked_fill(before < 0, -1)
        self.gone = self.gone or not reduction.covers
        self.source = self.source.gather(1, reduction.source)
        self.history.append(
            StageTrace("encoder", layer, method, self.assign, self.source, self.source, None, reduction.role_names)
        )
        self.numbers = [k] * len(self.size) if numbers is None else numbers
        self.left.append(self.numbers)
        self.touched = True

    def counts(self, depth: int) -> list[tuple[list[int], list[int]]]:
        """Rows of each image that attention and MLP of each block work on."""
        came = self.came[:depth]
        return list(zip(came, [*came[1:], self.numbers]))

    def full_width(self, states: Any, *, averaged: bool = False) -> Any:
        """Recorded hidden states (after 0, 1, 2, ... blocks; entries may be None) at full width.

        Args:
            averaged: every row of the unmerged tower is given the mean of all that its final row stands for, so that states
                of several blocks tell of the same groups.
        """
        full, k = self.assign.shape[1], self.size.shape[1]
        maps = [*self.entered, self.assign]
        wide = []
        for i, state in enumerate(states):
            at = min(i, len(maps) - 1)
            if state is not None and state.shape[1] != full:
                state = rows_of(state, maps[at])
            if state is not None and averaged and maps[at] is not self.assign:
                state = rows_of(group_mean(state, self.assign, k), self.assign)
            wide.append(state)
        return tuple(wide)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of ``x`` (B, N, D); -1, a token that is gone, gives the first row."""
    return take_rows(x, index.clamp_min(0))


def in_patches(history: list[StageTrace], prefix: int) -> list[StageTrace]:
    """``history`` counted in patches: ``prefix`` rows left out."""

    def cut(x: Tensor) -> Tensor:
        return (x[:, prefix:] - prefix).clamp_min(-1)

    return [
        replace(p, assign=cut(p.assign), seats=cut(p.source).sort(dim=1).values, source=cut(p.source)) for p in history
    ]
