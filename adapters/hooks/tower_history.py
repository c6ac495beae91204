"""What happened to single images, or segments, of a pass through a vision tower, counted in their own rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.provenance import StageTrace
from tokenreduce.uploading import uploaded


def history_of(state: TowerState, images: list[int]) -> list[StageTrace]:
    """What happened to ``images`` of ``state``, of equally many rows, counted in their own rows."""
    device = state.assign.device
    pick = uploaded(images, device)
    own = None if state.own is None else uploaded([state.own[image] for image in images], device)
    found = []
    for passage, left in zip(state.history, state.left):
        assign, source = passage.assign[pick], passage.source[pick, : left[images[0]]]
        if own is not None:
            assign, source = assign.gather(1, own), torch.searchsorted(own, source.contiguous())
        found.append(replace(passage, assign=assign, seats=source, source=source))
    return found


def of_segments(state: TowerState, span: range) -> list[StageTrace]:
    """What happened to the segments ``span``, one picture, of a packed sequence, counted in its own units."""
    begin, end = spans(state.came[0], span)
    found = []
    for passage, left in zip(state.history, state.left):
        first, last = spans(left, span)
        assign = (passage.assign[:, begin:end] - first).clamp_min(-1)
        source = passage.source[:, first:last] - begin
        found.append(replace(passage, assign=assign, seats=source, source=source))
    return found


def spans(numbers: list[int], segments: range) -> tuple[int, int]:
    """The first unit of ``segments``, of so many each, and the one behind them."""
    return sum(numbers[: segments.start]), sum(numbers[: segments.stop])
