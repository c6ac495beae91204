"""Frames that go on as one sequence: neighbouring rows of a batch side by side, those in front of the patches first, or their
mean."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_rows import joined
from tokenreduce.method import Step
from tokenreduce.reduction import Reduction


def join(state: TowerState, x: Tensor, step: Step) -> Tensor:
    """The rows ``x`` (B, n, D) of ``state`` as sequences of neighbours of the batch, as many as ``step`` joins.

    Returns:
        (B / frames, n frames, D), or, where their prefix rows become one frame's, as many rows fewer.

    Errors: ``ValueError`` where the batch is no multiple of that, or its sequences are not alike.
    """
    frames = step.joins
    if len(x) % frames:
        raise ValueError(
            f"{len(x) * state.frames} frames arrive where {frames * state.frames} neighbours go on as one sequence; allowed: "
            "whole videos, the frames of each one after another, a multiple of that in all"
        )
    if not state.alike or state.made is not None or state.units.patches > 1 or state.arrived is not None:
        raise ValueError(
            "frames go on as one sequence only where all are of one size, every patch is a row of its own, and no other method "
            "makes patches again or leaves some out; use a method that merges within frames"
        )
    prefix, n, places = state.prefix, x.shape[1], (state.whole_prefix, state.assign.shape[1])
    for name in ("size", "own_counts"):
        value = getattr(state, name)
        setattr(state, name, None if value is None else joined(value, frames, prefix))
    state.source = side_by_side(state.source, frames, prefix, *places)
    state.assign = side_by_side(state.assign, frames, places[0], prefix, n)
    for i, passage in enumerate(state.history):
        then = state.units.prefix * state.fronts_left[i]
        source = side_by_side(passage.source, frames, then, *places)
        assign = side_by_side(passage.assign, frames, places[0], then, passage.source.shape[1])
        state.history[i] = replace(passage, assign=assign, source=source, seats=source)
        state.left[i] = [number * frames for number in state.left[i][::frames]]
        state.fronts_left[i] *= frames
    state.numbers = [number * frames for number in state.numbers[::frames]]
    state.layouts = [
        replace(layout, frames=layout.frames * frames, medium="video") for layout in state.layouts[::frames]
    ]
    state.touched = state.moved = True
    x = joined(x, frames, prefix)
    state.frames *= frames
    state.fronts *= frames
    return x if step.prefix == "keep" else averaged(state, x)


def averaged(state: TowerState, x: Tensor) -> Tensor:
    """The rows ``x`` (B, n, D) of ``state`` with the mean of the prefix rows of all frames in the place of these."""
    every, own = state.prefix, state.units.prefix
    rows = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    mean = Reduction.merge(
        torch.where(rows < every, rows % max(own, 1), rows - every + own),
        torch.cat([rows[:, :own], rows[:, every:]], dim=1),
        covers=True,
    )
    state.become(mean)
    state.fronts = 1
    return mean.carry(x)


def side_by_side(index: Tensor, frames: int, front: int, prefix: int, n: int) -> Tensor:
    """``index`` (B, m) into sequences of ``n`` rows, for the sequences that ``frames`` of them make: (B / frames, m frames).

    ``front``: of the m, those of the prefix; ``prefix``, of the n.
    """
    frame = (torch.arange(len(index), device=index.device) % frames)[:, None]
    patch = (frames - 1) * prefix + frame * (n - prefix) + index
    moved = torch.where(index < prefix, frame * prefix + index, patch).masked_fill(index < 0, -1)
    return joined(moved, frames, front)
