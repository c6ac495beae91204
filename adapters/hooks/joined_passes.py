"""Several passes of a tower as one: what was merged of the images of a prompt that were encoded one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.hooks.tower_state import TowerState


def joined_passes(states: list[TowerState]) -> TowerState:
    """The images of several passes as one; rows beyond those that are left of a pass are absent.

    What happened in only some passes left the images of the others as they were.
    """

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        width = max(x.shape[1] for x in tensors)
        return torch.cat([F.pad(x, (0, width - x.shape[1])) for x in tensors])

    done = [by_place(state) for state in states]
    places = sorted({place: None for own in done for place in own}, key=lambda place: place[0] or 0)
    history, left = [], []
    for i, place in enumerate(places):
        ended = [{**own, place: len(own)} if i == len(places) - 1 else own for own in done]
        steps = [max((own[p] for p in places[: i + 1] if p in own), default=0) for own in ended]
        passages = [after(state, count) for state, count in zip(states, steps, strict=True)]
        source = stacked([source for _, source, _ in passages])
        assign = torch.cat([assign for assign, _, _ in passages])
        like = next(state.history[own[place] - 1] for state, own in zip(states, done) if place in own)
        history.append(replace(like, assign=assign, seats=source, source=source))
        left.append([n for _, _, own in passages for n in own])
    return TowerState(
        size=stacked([state.size for state in states]),
        assign=torch.cat([state.assign for state in states]),
        source=stacked([state.source for state in states]),
        layouts=[layout for state in states for layout in state.layouts],
        numbers=[number for state in states for number in state.numbers],
        history=history,
        left=left,
        touched=True,
        alike=all(state.alike for state in states) and len({state.size.shape[1] for state in states}) == 1,
    )


def by_place(state: TowerState) -> dict[tuple[int | None, str, int], int]:
    """How many things had happened after each, by block, method and which of the two it was there."""
    found: dict[tuple[int | None, str, int], int] = {}
    for steps, passage in enumerate(state.history, start=1):
        place = (passage.layer, passage.method)
        found[*place, sum(place == other[:2] for other in found)] = steps
    return found


def after(state: TowerState, steps: int) -> tuple[Tensor, Tensor, list[int]]:
    """``assign``, ``source`` and ``numbers`` after so many things of ``history``."""
    if steps:
        return state.history[steps - 1].assign, state.history[steps - 1].source, state.left[steps - 1]
    rows = torch.arange(state.assign.shape[1], device=state.assign.device).expand_as(state.assign)
    return rows, rows, state.came[0]
