"""Merging inside a vision encoder: what is asked of the methods in each block of a pass, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.encoders.patch_grid import Arrived, PatchGrid
from tokenreduce.adapters.hooks.arriving_views import each_an_image, whole_images
from tokenreduce.adapters.hooks.joined_frames import join
from tokenreduce.adapters.hooks.merging_pass import MergingPass
from tokenreduce.adapters.hooks.packed_units import Segment, Windows, ask_segments, grouped_segments
from tokenreduce.adapters.hooks.ragged_rows import (
    PROTECTED,
    TOKEN,
    Group,
    Plan,
    View,
    as_one,
    ask,
    grouped,
    kind_after,
    kinds,
    numbers,
)
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_rows import UnitRows, by_squares
from tokenreduce.kernels.rows import take_rows
from tokenreduce.layout import Layout
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline, Pipeline
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


class EncoderMerging:
    """Carries out the encoder steps of a pipeline in the blocks of one tower.

    Between attention and MLP a block is shortened without touching its forward: the MLP branch is given the merged
    residual stream, its output is spread back to full width for the addition, and the block's output is merged. As
    merging is linear and constant on groups, ``merge(x + spread(m)) = merge(x) + m``; where rows are sums, what the block
    added to one token of each is added to them. Without gradients the right side is what is
    done, in blocks where the two were seen to agree: at full width the block then adds a zero. Where several patches become
    one token, what merges are these units, row by row.
    """

    now = PerThread[MergingPass | None](nothing)  # the pass under way, or the last one
    collecting = PerThread[bool](bool)  # the same as ``every_block``, for the call under way

    def __init__(
        self,
        blocks: list[Block],
        pipeline: ActivePipeline,
        grid: PatchGrid,
        prefix: int,
        *,
        side: int = 1,
        expand: bool = True,
    ) -> None:
        """``side``: of the square of patches that is a unit; ``expand``: whether the last block gives each unmerged row a copy
        of the row that stands for it."""
        self.blocks = blocks
        self.active = pipeline
        self.grid = grid
        self.prefix = prefix
        self.side = side
        self.expand = expand
        self.every_block = False  # whether all blocks do so, for a model that collects what they return
        self.done: Callable[[TowerState], None] | None = None
        self.views: Callable[[int], Sequence[View]] = each_an_image  # of a pass; none: alike, each an image
        self.entering: Callable[[list[Layout]], Tensor | None] = whole_images  # patches (B, n) bool; None: all
        self.segments: Callable[[], Sequence[Segment]] | None = None  # of a pass, where the tower packs

    @property
    def pipeline(self) -> Pipeline:
        return self.active.now

    @property
    def state(self) -> TowerState | None:
        return None if self.now is None else self.now.state

    @property
    def given(self) -> list[Tensor]:
        """Per block, the borders between rows that there would be without merging, where the tower packs."""
        return [] if self.now is None else self.now.given

    def begin(self, x: Tensor) -> MergingPass:
        """Rows ``x`` (B, N, D) arrive at the first block: what to do in which block is known from now on."""
        if self.segments is not None:
            return self.begin_packed(x, self.segments())
        n = x.shape[1] - self.prefix
        arrived = self.grid.arrived(len(x), n)
        units = UnitRows(1, self.prefix)
        whole = [image.layout for image in arrived]
        if (entering := self.entering(whole)) is not None:
            state = TowerState.start(x, whole, units)
            state.select(entering, self.prefix, in_place=self.expand)
            self.now = found = MergingPass(self.pipeline, state, {}, [], None, self.every_block or self.collecting)
            return found
        if self.side > 1:
            height, width = arrived[0].layout.height, arrived[0].layout.width
            units = UnitRows(self.side**2, self.prefix, by_squares(height, width, self.side, self.prefix, x.device))
            arrived = [Arrived(Layout(height // self.side, width // self.side))] * len(x)
            n //= units.patches
        if not self.expand and any(image.filling is not None for image in arrived):
            raise ValueError(
                "output_length='reduced', but the model was told which patches are real and looks for them again behind its "
                "blocks; allowed: output_length='full', or whole images without such a mask"
            )
        layouts = [image.layout for image in arrived]
        views = self.views(len(x)) or [View()] * len(x)
        views = [view._replace(filling=image.filling or ()) for view, image in zip(views, arrived, strict=True)]
        pipeline, state, widen = self.pipeline, TowerState.start(x, layouts, units), self.every_block or self.collecting
        if all(view.numbers(n) == (n, n) for view in views) and len({*zip(layouts, (v.shares for v in views))}) == 1:
            steps = pipeline.encoder_steps((layouts[0].height, layouts[0].width), views[0].shares)
            self.now = found = MergingPass(pipeline, state, steps, [], None, widen)
            return found
        if any(view.filling for view in views):
            state.own = [view.own(n, self.prefix) for view in views]
        groups = grouped(views, layouts, n, self.prefix, pipeline, x.device)
        state.numbers, state.alike = numbers(groups), False
        blocks = range(len(self.blocks))
        steps = {block: max((group.steps.get(block, []) for group in groups), key=len) for block in blocks}
        kind = kinds(views, n, self.prefix, x.device)
        self.now = found = MergingPass(pipeline, state, steps, groups, kind, widen)
        return found

    def begin_packed(self, x: Tensor, segments: Sequence[Segment]) -> MergingPass:
        """The same where all pictures are one sequence ``x`` (1, N, D) of ``segments``."""
        units = UnitRows(self.side**2)
        state = TowerState.start(x, [segment.layout for segment in segments], units)
        state.numbers = [segment.layout.num_tokens for segment in segments]
        if sum(state.numbers) != state.size.shape[1]:
            raise ValueError(
                f"{x.shape[1]} patches arrive at the first block, for {sum(state.numbers)} tokens of {units.patches} patches; "
                "patches can merge only where all of a picture enter the tower"
            )
        groups = grouped_segments(segments, self.pipeline, x.device)
        blocks = range(len(self.blocks))
        steps = {block: max((group.steps.get(block, []) for group in groups), key=len) for block in blocks}
        self.now = found = MergingPass(self.pipeline, state, steps, groups, None, False)
        return found

    def arrange(self, now: MergingPass, index: int, x: Tensor, borders: Tensor | None) -> Tensor:
        """The rows ``x`` (B, n, D) that enter block ``index``, in the order in which it works on them.

        ``borders``: between the segments or windows of the unmerged rows, where the tower packs.
        """
        state = now.state
        if index == 0 and state.units.order is not None and any(now.steps.values()):
            state.moved = True
            return x[:, state.units.order]
        if self.segments is None:
            return x
        if borders is None:
            raise ValueError(
                "a vision block was handed no borders, by which the rows of one picture are told from those of another; "
                "merge behind the tower with at='projector'"
            )
        now.given.append(borders)
        now.windows = Windows(borders, len(state.layouts), state)
        order = now.windows.sort(state, borders)
        return x if order is None else state.units.parted(take_rows(state.units.joined(x), order))

    def reduce(
        self, now: MergingPass, index: int, x: Tensor, when: str
    ) -> tuple[Tensor, list[tuple[Reduction, Tensor]]]:
        """Ask the methods that act ``when`` in a block, one after the other; returns what becomes of ``x``, and their
        reductions, each with the rows that it found."""
        state, done = now.state, []
        for position, own in enumerate(now.steps.get(index, [])):
            method, step, number = own
            if step.when != when:
                continue
            with now.pipeline.stopwatch(x.device):
                x = x if step.joins == 1 else join(state, x, step)
                tokens = now.shown(x, index, own)
                if self.segments is not None:
                    joined = ask_segments(tokens, now.groups, state.numbers, position)
                elif now.kind is not None:
                    joined = ask(tokens, now.groups, now.kind, position)
                else:
                    (joined,) = method.checked_together([tokens])
                    now.notes[number] = {**tokens.notes, **joined.notes}
                    if joined.valid is not None:
                        joined = self.by_count(now, tokens, joined)
                if joined is None:
                    continue
                if joined.does_nothing(tokens.num_tokens):
                    continue
                if now.kind is not None:
                    now.kind = kind_after(now.kind, joined, now.groups)
                state.apply(joined, index, method.name, numbers(now.groups) if now.groups else None)
                later = now.asked_later(index, when, position)
                now.heard = {signal: carried_signal(joined, now.heard[signal]) for signal in later & now.heard.keys()}
                done.append((joined, x))
                x = carried(joined, state.units, x)
        return x, done

    def by_count(self, now: MergingPass, tokens: VisualTokens, joined: Reduction) -> Reduction | None:
        """``joined``, by which images that were alike until now are left with numbers of rows of their own.

        Errors: ``ValueError`` where rows are handed on as they are left, which only equal numbers can be.
        """
        batch, n = tokens.features.shape[:2]
        rows = torch.arange(batch, device=tokens.features.device)
        place = torch.arange(now.state.assign.shape[1], device=rows.device).expand_as(now.state.assign)
        index = place[:, :1] + torch.arange(n, device=rows.device)
        group = Group([*range(batch)], rows, tokens.layout, n, now.state.prefix, now.steps, place, now.notes)
        plans = Plan(group, index, joined).by_count()
        if len(plans) == 1:
            return plans[0].reduction
        if not self.expand:
            left = sorted(plan.reduction.num_kept - now.state.prefix for plan in plans if plan.reduction is not None)
            raise ValueError(
                f"output_length='reduced', but the images of this batch are left with {left[0]} to {left[-1]} patches; allowed: "
                "output_length='full', images one by one, or a method that leaves equally many of each"
            )
        now.kind = torch.where(index < now.state.prefix, PROTECTED, TOKEN)
        now.state.alike = False
        return as_one(tokens, now.groups, plans, place[:, :1])


def carried_signal(reduction: Reduction, value: Tensor) -> Tensor:
    """A signal (B, units) or (B, units, C) for the rows that come out: of a row that is a sum, that of where it sits."""
    channels = value if value.ndim == 3 else value[..., None]
    return replace(reduction, mix=None).carry(channels).view(len(value), -1, *value.shape[2:])


def carried(reduction: Reduction, units: UnitRows, x: Tensor) -> Tensor:
    """What becomes of the rows ``x`` (B, n, D) by a ``reduction`` of their ``units``."""
    return units.parted(reduction.carry(units.joined(x)))
