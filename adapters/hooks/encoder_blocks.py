"""Merging inside a vision encoder: four hooks per block, no forward replaced, full width again after the last block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.encoders.patch_grid import PatchGrid
from tokenreduce.adapters.hooks.exporting import refuse_strict_export
from tokenreduce.adapters.hooks.ragged_rows import Group, View, ask, grouped, kind_after, kinds, numbers
from tokenreduce.adapters.hooks.row_arguments import RowArguments
from tokenreduce.adapters.hooks.tower_state import TowerState, rows_of
from tokenreduce.kernels.rows import take_rows
from tokenreduce.method import Method, Step
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline, Pipeline
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens

UNSEEN = -1e4  # added to the logits of an absent row: none is left of it after the softmax, in any precision


@dataclass
class MergingPass:
    """One pass of a tower: what is done in which block, and the rows as they are.

    Attributes:
        groups: where the views are not alike; ``kind``, of their rows.
        widen: whether all blocks give full width.
        keys: of the block under way; ``pending``, the reductions carried out between its attention and MLP.
    """

    pipeline: Pipeline
    state: TowerState
    steps: dict[int, list[tuple[Method, Step]]]
    groups: list[Group]
    kind: Tensor | None
    widen: bool
    keys: Tensor | None = None
    pending: list[Reduction] = field(default_factory=list)


class EncoderMerging:
    """Carries out the encoder steps of a pipeline in the blocks of one tower.

    Between attention and MLP a block is shortened without touching its forward: the MLP branch is given the merged
    residual stream, its output is spread back to full width for the addition, and the block's output is merged. As
    merging is linear and constant on groups, ``merge(x + spread(m)) = merge(x) + m``.
    """

    now = PerThread[MergingPass | None](nothing)  # the pass under way, or the last one
    collecting = PerThread[bool](bool)  # the same as ``every_block``, for the call under way

    def __init__(
        self, blocks: list[Block], pipeline: ActivePipeline, grid: PatchGrid, prefix: int, *, expand: bool = True
    ) -> None:
        """``expand``: whether the last block gives each unmerged row a copy of the row that stands for it."""
        self.blocks = blocks
        self.active = pipeline
        self.grid = grid
        self.prefix = prefix
        self.expand = expand
        self.every_block = False  # whether all blocks do so, for a model that collects what they return
        self.done: Callable[[TowerState], None] | None = None
        self.views: Callable[[int], Sequence[View]] = lambda batch: ()  # of a pass; none: alike, each an image

    @property
    def pipeline(self) -> Pipeline:
        return self.active.now

    @property
    def state(self) -> TowerState | None:
        return None if self.now is None else self.now.state

    def attach(self, handles: list[Any], done: Callable[[TowerState], None] | None = None) -> None:
        """Append the hooks to ``handles``; none when no step merges and nobody waits for ``done``, called after each pass."""
        self.done = done
        steps = [step for _, step in self.pipeline.steps if step.stage == "encoder"]
        if not steps and done is None:
            return
        handles.extend(self.grid.watch())
        for index, block in enumerate(self.blocks):
            hook = BlockHooks(self, index, block)
            handles.append(block.module.register_forward_pre_hook(hook.enter, with_kwargs=True))
            # before the hooks by which transformers records hidden states
            handles.append(block.module.register_forward_hook(hook.leave, prepend=True))
            if steps:
                hook.proportional = any(step.proportional for step in steps)
                handles.append(block.bias_keys(hook.bias))
            if any(isinstance(need, Keys) for step in steps for need in step.needs):
                handles.append(block.listen_keys(hook.hear))
            if any(step.when == "middle" for step in steps):
                handles.append(block.norm2.register_forward_pre_hook(hook.shorten))
                handles.append(block.mlp.register_forward_hook(hook.spread))

    def begin(self, x: Tensor) -> MergingPass:
        """Rows ``x`` (B, N, D) arrive at the first block: what to do in which block is known from now on."""
        n = x.shape[1] - self.prefix
        arrived = self.grid.arrived(len(x), n)
        if not self.expand and any(image.filling is not None for image in arrived):
            raise ValueError(
                "output_length='reduced', but the model was told which patches are real and looks for them again behind its "
                "blocks; allowed: output_length='full', or whole images without such a mask"
            )
        layouts = [image.layout for image in arrived]
        views = self.views(len(x)) or [View()] * len(x)
        views = [view._replace(filling=image.filling or ()) for view, image in zip(views, arrived, strict=True)]
        pipeline, state, widen = self.pipeline, TowerState.start(x, layouts), self.every_block or self.collecting
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

    def reduce(
        self, now: MergingPass, index: int, x: Tensor, steps: list[tuple[Method, Step]]
    ) -> tuple[Tensor, list[Reduction]]:
        """Ask the methods of a block, one after the other; returns what becomes of ``x`` and their reductions."""
        state, done = now.state, []
        for position, (method, step) in enumerate(steps):
            with now.pipeline.stopwatch(x.device):
                tokens = VisualTokens(
                    features=x,
                    layout=state.layouts[0],
                    stage="encoder",
                    layer=index,
                    source=state.source,
                    size=state.size,
                    signals={need: now.keys for need in step.needs if isinstance(need, Keys)},
                    prefix=self.prefix,
                    amount=step.amount,
                )
                if now.kind is not None:
                    joined = ask(tokens, now.groups, now.kind, position)
                    if joined is None:
                        continue
                    reduction = joined
                    now.kind = kind_after(now.kind, reduction, now.groups)
                else:
                    reduction = method.checked(tokens)
                if reduction.valid is not None:
                    raise ValueError(
                        f"method={method.name!r} keeps a different number of tokens per image in encoder block {index}; "
                        "a dense tower needs equal counts: run images one by one, or use a fixed budget"
                    )
                if reduction.does_nothing(x.shape[1]):
                    continue
                state.apply(reduction, index, method.name, numbers(now.groups) if now.groups else None)
                x = reduction.carry(x)
            done.append(reduction)
        return x, done


class BlockHooks:
    """The hooks of one block. What it has to do is looked up at every pass: the budget may have changed."""

    def __init__(self, merging: EncoderMerging, index: int, block: Block) -> None:
        self.merging = merging
        self.index = index
        self.block = block
        self.arguments = RowArguments(block.module, block.rope_by_head)
        self.proportional = False

    def steps(self, now: MergingPass, when: str) -> list[tuple[Method, Step]]:
        return [(m, s) for m, s in now.steps.get(self.index, []) if s.when == when]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        if self.index == 0:
            refuse_strict_export()
            self.merging.begin(x)
        state = self.merging.state
        if state is None:
            return None
        state.entered.append(state.assign)
        state.came.append(state.numbers)
        if not state.touched:
            return None
        if x.shape[1] != state.size.shape[1]:  # the block before gave its rows at full width
            x = rows_of(x, state.source)
        rest, kwargs = self.arguments.following(args[1:], kwargs, state, self.merging.prefix)
        return ((x, *rest), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

    def hear(self, keys: Tensor) -> None:
        now = self.merging.now
        if now is None or self.index not in now.steps:
            return
        batch, n, width = keys.shape
        now.keys = keys.reshape(batch, n, self.block.heads, width // self.block.heads).float().mean(dim=2)

    def bias(self) -> Tensor | None:
        now = self.merging.now
        if now is None or not now.state.touched:  # no row is absent, or counts for several, before the first merge
            return None
        size = now.state.size
        row = size.log() if self.proportional else torch.zeros_like(size)
        return row.masked_fill(size == 0, UNSEEN) if now.groups else row if self.proportional else None

    def shorten(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        now = self.merging.now
        steps = [] if now is None else self.steps(now, "middle")
        if now is None or not steps:
            return None
        x, now.pending = self.merging.reduce(now, self.index, args[0], steps)
        return (x, *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        now = self.merging.now
        if now is not None and now.pending:
            with now.pipeline.stopwatch(output.device):
                for reduction in reversed(now.pending):
                    spread = take_rows if reduction.covers else rows_of
                    output = spread(output, reduction.assign)
        return output

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        merging, now = self.merging, self.merging.now
        if now is None:
            return output
        x = output[0] if isinstance(output, tuple) else output
        with now.pipeline.stopwatch(x.device):
            for reduction in now.pending:
                x = reduction.carry(x)
        now.pending = []
        x, _ = merging.reduce(now, self.index, x, self.steps(now, "after"))
        last = self.index == len(merging.blocks) - 1
        if now.state.touched and ((last and merging.expand) or now.widen):
            x = rows_of(x, now.state.assign)
        if last and merging.done is not None:
            merging.done(now.state)
        return (x, *output[1:]) if isinstance(output, tuple) else x
