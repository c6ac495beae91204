"""Frames that go on as one sequence: neighbouring rows of a batch side by side, those in front of the patches first."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_rows import joined


def join(state: TowerState, x: Tensor, frames: int) -> Tensor:
    """The rows ``x`` (B, n, D) of ``state`` with ``frames`` neighbours of the batch as one sequence, (B / frames, n frames, D).

    Errors: ``ValueError`` where the batch is no multiple of that, or its sequences are not alike.
    """
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
    prefix, n, whole = state.prefix, x.shape[1], state.assign.shape[1]
    for name in ("size", "own_counts"):
        value = getattr(state, name)
        setattr(state, name, None if value is None else joined(value, frames, prefix))
    state.source = side_by_side(state.source, frames, prefix, whole)
    state.assign = side_by_side(state.assign, frames, prefix, n)
    for i, passage in enumerate(state.history):
        source = side_by_side(passage.source, frames, prefix, whole)
        assign = side_by_side(passage.assign, frames, prefix, passage.source.shape[1])
        state.history[i] = replace(passage, assign=assign, source=source, seats=source)
        state.left[i] = [number * frames for number in state.left[i][::frames]]
    state.numbers = [number * frames for number in state.numbers[::frames]]
    state.layouts = [
        replace(layout, frames=layout.frames * frames, medium="video") for layout in state.layouts[::frames]
    ]
    state.touched = state.moved = True
    x = joined(x, frames, prefix)
    state.frames *= frames
    return x


def side_by_side(index: Tensor, frames: int, prefix: int, n: int) -> Tensor:
    """``index`` (B, m) into sequences of ``n`` rows, for the sequences that ``frames`` of them make: (B / frames, m frames)."""
    frame = (torch.arange(len(index), device=index.device) % frames)[:, None]
    patch = (frames - 1) * prefix + frame * (n - prefix) + index
    moved = torch.where(index < prefix, frame * prefix + index, patch).masked_fill(index < 0, -1)
    return joined(moved, frames, prefix)
