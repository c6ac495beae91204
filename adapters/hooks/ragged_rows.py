"""Rows of one pass whose numbers differ: views of images whose budget is shared, or which are unpadded, unequally, and
images of several sizes, filled up to one number of patches.

Views of one number of tokens and one budget form a group, which a method is asked about by itself; the tensors of the pass
are as wide as the widest group, and rows beyond a narrower one are absent: of size 0, seen by no other row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.unit_rows import rows_of
from tokenreduce.encoder_steps import EncoderStep
from tokenreduce.layout import Layout
from tokenreduce.mixing import Mix
from tokenreduce.pipeline import Pipeline
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded

PROTECTED, TOKEN, ABSENT = 0, 1, 2


class View(NamedTuple):
    """One row of the tower's batch.

    Attributes:
        tokens: its patches that become tokens, ascending; the others never merge. None: all.
        shares: tokens it is left with, per method of the pipeline; None where a method's budget does not say.
        filling: its patches that only fill up the batch and take no part; no other view sees them from the start.
    """

    tokens: tuple[int, ...] | None = None
    shares: tuple[int | None, ...] = ()
    filling: tuple[int, ...] = ()

    def numbers(self, n: int) -> tuple[int, int]:
        """Of its ``n`` patches, how many are there, and how many of these become tokens."""
        there = n - len(self.filling)
        return there, there if self.tokens is None else len(self.tokens)

    def own(self, n: int, prefix: int) -> list[int]:
        """The rows there are of it, those in front of its ``n`` patches included."""
        filling = set(self.filling)
        return [*range(prefix), *(prefix + patch for patch in range(n) if patch not in filling)]


@dataclass
class Group:
    """Views of one layout, one number of tokens and one budget.

    Attributes:
        members: rows of the batch; ``rows``, (B,) long, the same on the device.
        width: rows of each that are there, of which ``protected``.
        place: (B, n) long, of each row that entered the tower, its number among those that are of the view, protected ones
            first; ``notes``, what methods noted, by their number, with tokens counted so.
    """

    members: list[int]
    rows: Tensor
    layout: Layout
    width: int
    protected: int
    steps: dict[int, list[EncoderStep]]
    place: Tensor | None = None
    notes: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def only(self, which: list[int]) -> Group:
        """The views ``which`` of these, counted within the group."""
        at = uploaded(which, self.rows.device)
        return replace(
            self,
            members=[self.members[i] for i in which],
            rows=self.rows[at],
            place=None if self.place is None else self.place[at],
            notes={number: {name: x[at] for name, x in own.items()} for number, own in self.notes.items()},
        )


class Plan(NamedTuple):
    """What is done to a group, whose rows are ``among`` (B, n) all of the pass; None: nothing."""

    group: Group
    among: Tensor
    reduction: Reduction | None

    def by_count(self) -> list[Plan]:
        """The same, a group for each number of rows that are left; waits for the device where images may differ in it."""
        reduction = self.reduction
        if reduction is None or reduction.valid is None:
            return [self]
        counts, found = reduction.valid.sum(dim=1).tolist(), []
        for count in sorted(set(counts)):
            which = [i for i, own in enumerate(counts) if own == count]
            at = uploaded(which, self.among.device)
            group = self.group if len(which) == len(counts) else self.group.only(which)
            found.append(Plan(group, self.among[at], reduction.rows(at, count)))
        return found


class Question(NamedTuple):
    """What a group is shown at a step."""

    group: Group
    among: Tensor
    step: EncoderStep
    tokens: VisualTokens


def answers(questions: Sequence[Question]) -> list[Plan]:
    """What methods say of the groups of a pass, those of one method together; what they note is noted."""
    found: list[Plan] = []
    for method in {id(question.step.method): question.step.method for question in questions}.values():
        asked = [question for question in questions if question.step.method is method]
        plans = method.checked_together([question.tokens for question in asked])
        for (group, index, step, tokens), plan in zip(asked, plans, strict=True):
            group.notes[step.number] = {**tokens.notes, **plan.notes}
            found += Plan(group, index, plan).by_count()
    return found


def grouped(
    views: Sequence[View], layouts: Sequence[Layout], n: int, prefix: int, pipeline: Pipeline, device: torch.device
) -> list[Group]:
    """The groups of ``views``, each of ``n`` patches, with what ``pipeline`` does to them."""
    alike: dict[tuple[Layout, int, int, tuple[int | None, ...]], list[int]] = {}
    for b, (view, layout) in enumerate(zip(views, layouts, strict=True)):
        alike.setdefault((layout, *view.numbers(n), view.shares), []).append(b)
    groups = []
    for (layout, there, count, shares), members in alike.items():
        grid = (layout.height, layout.width) if layout.is_grid and layout.num_tokens == count else (1, count)
        steps = pipeline.encoder_steps(grid, shares) if count else {}
        rows = uploaded(members, device)
        groups.append(Group(members, rows, layout, prefix + there, prefix + there - count, steps))
    return groups


def numbers(groups: Sequence[Group]) -> list[int]:
    """Rows there are of each view."""
    found = {member: group.width for group in groups for member in group.members}
    return [found[member] for member in range(len(found))]


def kinds(views: Sequence[View], n: int, prefix: int, device: torch.device) -> Tensor:
    """(B, prefix + n) long: PROTECTED, TOKEN or ABSENT."""
    kind = torch.full((len(views), prefix + n), TOKEN)
    for b, view in enumerate(views):
        if view.tokens is not None:
            kind[b] = PROTECTED
            kind[b, [prefix + cell for cell in view.tokens]] = TOKEN
        kind[b, [prefix + cell for cell in view.filling]] = ABSENT
    kind[:, :prefix] = PROTECTED
    return kind.to(device)


def ask(tokens: VisualTokens, groups: list[Group], kind: Tensor, position: int) -> Reduction | None:
    """The plans of all groups for the step at ``position`` of this block, as one; None: nobody has one.

    Rows come out as protected ones, tokens, and absent ones last, in every view. A group whose views are left with different
    numbers of rows becomes several, in ``groups``.
    """
    order, questions, plans = kind.sort(dim=1, stable=True).indices, [], []
    for group in groups:
        steps = group.steps.get(tokens.layer or 0, [])
        index = order[group.rows, : group.width]
        if position >= len(steps):
            plans.append(Plan(group, index, None))
            continue
        if group.place is None:  # the first to be asked
            count = torch.arange(group.width, device=index.device).expand_as(index)
            group.place = torch.zeros_like(order[group.rows]).scatter(1, index, count)
        step = steps[position]
        part = VisualTokens(
            features=rows_of(tokens.features[group.rows], index),
            layout=group.layout,
            stage="encoder",
            layer=tokens.layer,
            source=group.place.gather(1, tokens.source[group.rows].gather(1, index)),
            size=tokens.size[group.rows].gather(1, index),
            signals={s: rows_of(x[group.rows], index) for s, x in tokens.signals.items() if s in step.step.needs},
            notes=group.notes.get(step.number, {}),
            prefix=group.protected,
            cell=None if tokens.cell is None else tokens.cell[group.rows].gather(1, index),
            amount=step.step.amount,
        )
        questions.append(Question(group, index, step, part))
    return as_one(tokens, groups, plans + answers(questions), order[:, :1])


def as_one(tokens: VisualTokens, groups: list[Group], plans: list[Plan], anywhere: Tensor) -> Reduction | None:
    """``plans``, of all views of a pass, as one, and their groups in ``groups``; None: there is nothing to be done.

    ``anywhere`` (B, 1): where rows sit that are absent.
    """
    batch, n = tokens.features.shape[:2]
    if all(plan is None or plan.does_nothing(index.shape[1]) for _, index, plan in plans):
        return None
    groups[:] = [plan.group for plan in plans]
    width = max(group.width if plan is None else plan.num_kept for group, _, plan in plans)
    source, assign = anywhere.repeat(1, width), anywhere.new_full((batch, n), DROPPED)
    weight, merges, mixes, counts, restore = tokens.size.clone(), False, [], None, None
    for group, index, plan in plans:
        own = torch.arange(group.width, device=anywhere.device).expand_as(index)
        kept, joined = (own, own) if plan is None else (plan.source, plan.assign)
        group.width = kept.shape[1]
        source[group.rows, : group.width] = index.gather(1, kept)
        assign[group.rows] = assign[group.rows].scatter(1, index, joined)
        if plan is not None and plan.merges:
            merges = True
            given = torch.ones_like(index, dtype=weight.dtype) if plan.weight is None else plan.weight
            weight[group.rows] = weight[group.rows].scatter(1, index, given.to(weight.dtype))
        if plan is not None and plan.mix is not None:
            mixes.append((group.rows, replace(plan.mix, tokens=index.gather(1, plan.mix.tokens))))
        if plan is not None and plan.counts is not None:
            counts = torch.ones_like(source, dtype=torch.float32) if counts is None else counts
            counts[group.rows, : group.width] = plan.counts.float()
        if plan is not None and plan.restore is not None:
            restore = weight.new_zeros(batch, n, width) if restore is None else restore
            restore[group.rows[:, None], index, : group.width] = plan.restore.float()
    mix = Mix.stacked(mixes, batch)
    return Reduction(
        source=source,
        assign=assign,
        merges=merges,
        weight=weight if merges else None,
        mix=mix,
        counts=counts,
        restore=restore,
    )


def kind_after(kind: Tensor, reduction: Reduction, groups: Sequence[Group]) -> Tensor:
    """``kind`` of the rows that come out."""
    after = kind.gather(1, reduction.source)
    for group in groups:
        after[group.rows, group.width :] = ABSENT
    return after
