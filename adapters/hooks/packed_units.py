"""Units of a tower that packs its pictures into one sequence: who is asked about which segment of it, and where windows are.

Segments of one layout and one budget form a group, which a method is asked about by itself, as of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.ragged_rows import Group, Plan, Question, answers
from tokenreduce.adapters.hooks.row_arguments import borders_of_units
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.encoder_steps import EncoderStep
from tokenreduce.layout import Layout
from tokenreduce.mixing import Mix
from tokenreduce.pipeline import Pipeline
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded


class Segment(NamedTuple):
    """Units that follow one another and attend to each other: an image, or one frame of a video.

    Attributes:
        layout: where they are; ``shares``, units that are left, per method of the pipeline, None where its budget does not say.
    """

    layout: Layout
    shares: tuple[int | None, ...]


def grouped_segments(segments: Sequence[Segment], pipeline: Pipeline, device: torch.device) -> list[Group]:
    """The groups of ``segments``, with what ``pipeline`` does to them."""
    alike: dict[Segment, list[int]] = {}
    for i, segment in enumerate(segments):
        alike.setdefault(segment, []).append(i)
    found = []
    for (layout, shares), members in alike.items():
        steps = pipeline.encoder_steps((layout.height, layout.width), shares)
        found.append(Group(members, uploaded(members, device), layout, layout.num_tokens, 0, steps))
    return found


def ask_segments(tokens: VisualTokens, groups: list[Group], numbers: list[int], position: int) -> Reduction | None:
    """The plans of all groups for the step at ``position`` of this block, as one of the whole sequence (1, U); None: nobody has
    one. ``numbers``: units of each segment, which come out in the same order. A group whose segments are left with different
    numbers of units becomes several, in ``groups``."""
    device = tokens.features.device
    starts = uploaded([0, *accumulate(numbers)], device)
    came = {member: group.layout.num_tokens for group in groups for member in group.members}
    first = uploaded([0, *accumulate(came[i] for i in range(len(came)))], device)
    plans, questions = [], []
    for group in groups:
        steps = group.steps.get(tokens.layer or 0, [])
        index = starts[group.rows, None] + torch.arange(group.width, device=device)
        if position < len(steps):
            shown = part(tokens, index, first, group, steps[position])
            questions.append(Question(group, index, steps[position], shown))
        else:
            plans.append(Plan(group, index, None))
    plans += answers(questions)
    for question in questions:
        if any(plan is not None and plan.restore is not None for _, _, plan in plans):
            raise ValueError(
                f"method={question.step.method.name!r} makes every patch again, which a tower that packs its pictures does not "
                "hand on; allowed there: plans without Reduction.restore, as ModelFacts.restores tells"
            )
    if all(plan is None or plan.does_nothing(index.shape[1]) for _, index, plan in plans):
        return None
    groups[:] = [plan.group for plan in plans]
    for group, _, plan in plans:
        group.width = group.width if plan is None else plan.num_kept
    widths = {member: group.width for group, _, _ in plans for member in group.members}
    begins = uploaded([0, *accumulate(widths[i] for i in range(len(widths)))], device)
    source = tokens.source.new_empty(1, sum(widths.values()))
    assign, weight = torch.empty_like(tokens.source), tokens.size.clone()
    mixes: list[Mix] = []
    counts = None
    for group, index, plan in plans:
        own = torch.arange(index.shape[1], device=device).expand_as(index)
        kept, joined = (own, own) if plan is None else (plan.source, plan.assign)
        first = begins[group.rows, None]
        source[0, first + torch.arange(group.width, device=device)] = index.gather(1, kept)
        assign[0, index] = torch.where(joined < 0, joined, joined + first)
        if plan is not None and plan.merges:
            weight[0, index] = torch.ones_like(index, dtype=weight.dtype) if plan.weight is None else plan.weight
        if plan is not None and plan.mix is not None:
            mixes.append(Mix(plan.mix.rows + first, index.gather(1, plan.mix.tokens), plan.mix.share))
        if plan is not None and plan.counts is not None:
            counts = torch.ones_like(source, dtype=torch.float32) if counts is None else counts
            counts[0, first + torch.arange(group.width, device=device)] = plan.counts.float()
    merges = any(plan is not None and plan.merges for _, _, plan in plans)
    covers = all(plan is None or plan.covers for _, _, plan in plans)
    return Reduction(
        source=source,
        assign=assign,
        merges=merges,
        weight=weight if merges else None,
        covers=covers,
        mix=Mix.side_by_side(mixes),
        counts=counts,
    )


def part(tokens: VisualTokens, index: Tensor, first: Tensor, group: Group, step: EncoderStep) -> VisualTokens:
    """The units ``index`` (G, n) of the sequence, those of ``group``; ``first`` (segments,) of the unmerged ones of each."""
    source = tokens.source[0, index] - first[group.rows, None]
    return VisualTokens(
        features=tokens.features[0, index],
        layout=group.layout,
        stage="encoder",
        layer=tokens.layer,
        source=source,
        cell=uploaded(group.layout.patches, source.device)[source],
        size=tokens.size[0, index],
        signals={signal: x[0, index] for signal, x in tokens.signals.items()},
        window=None if tokens.window is None else tokens.window[0, index],
        notes=group.notes.get(step.number, {}),
        amount=step.step.amount,
    )


class Windows:
    """The windows in which a block attends, of those rows that are left.

    Attributes:
        of_units: (1, U) long, the window of each unit; None where windows are the segments.
        borders: (S + 1,) between the rows of each, as they are now.
    """

    def __init__(self, given: Tensor, segments: int, state: TowerState) -> None:
        """``given`` (S + 1,): borders between the rows of the unmerged tower, whose sequence has ``segments``."""
        self.of_units: Tensor | None = None
        self.borders = given
        patches = state.units.patches
        if len(given) - 1 > segments:
            self.of_units = torch.bucketize(state.source * patches, given[1:].contiguous(), right=True)
        elif state.moved:
            rows = [0, *accumulate(n * patches for n in state.numbers)]
            self.borders = uploaded(rows, given.device, given.dtype)

    def sort(self, state: TowerState, given: Tensor) -> Tensor | None:
        """Put the units of ``state`` in the order of their windows, and give that order (1, U); None: they are in it."""
        if self.of_units is None or not state.moved:
            return None
        order = self.of_units.argsort(dim=1, stable=True)
        state.reorder(order)
        self.of_units = self.of_units.gather(1, order)
        self.borders = borders_of_units(self.of_units[0], len(given) - 1, state.units.patches, given)
        return order
