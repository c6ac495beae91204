"""Merging inside a vision encoder: four hooks per block, no forward replaced, full width again after the last block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import masked
from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.hooks.around_attention import AroundAttention
from tokenreduce.adapters.hooks.encoder_merging import EncoderMerging, carried
from tokenreduce.adapters.hooks.exporting import refuse_strict_export
from tokenreduce.adapters.hooks.merging_pass import MergingPass
from tokenreduce.adapters.hooks.row_arguments import RowArguments
from tokenreduce.adapters.hooks.tower_listener import TowerListener, attention_statistic
from tokenreduce.adapters.hooks.tower_state import UNSEEN, TowerState
from tokenreduce.adapters.hooks.unit_rows import as_given, in_batch, joined, rows_of
from tokenreduce.block_signals import AttentionMap, BlockInput
from tokenreduce.kernels.rows import take_rows
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention, Keys


class BlockHooks:
    """The hooks of one block. What it has to do is looked up at every pass: the budget may have changed."""

    def __init__(self, merging: EncoderMerging, index: int, block: Block) -> None:
        self.merging = merging
        self.index = index
        self.block = block
        self.arguments = RowArguments(block.module, block.rope_by_head)
        self.proportional = False
        # whether what the MLP's branch gives joins the stream as it is; None: not seen yet
        self.adds: bool | None = None if block.only_adds else False

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        x = in_batch(given)
        if self.index == 0:
            refuse_strict_export()
            self.merging.begin(x)
        now = self.merging.now
        if now is None:
            return None
        state, again = now.state, len(now.state.entered) > self.index
        now.inside = None if again else self.index
        self.in_turn(now)
        x = self.merging.arrange(now, self.index, x, self.arguments.borders(args[1:], kwargs))
        come_whole = self.index == 0 and state.arrived is not None
        narrow = len(state.size), state.units.count(state.size.shape[1])
        if state.moved and (come_whole or x.shape[:2] != narrow):  # the block before gave full width
            whole = joined(x, state.frames, self.merging.prefix) if state.frames > 1 else x
            x = rows_of(whole, state.rows) if now.rows is None else now.rows
        now.heard = {}
        state.began = state.began or state.numbers
        if any(step.when == "before" for _, step, _ in now.steps.get(self.index, [])):
            x, _ = self.merging.reduce(now, self.index, x, "before")
            if state.frames > 1:
                self.arguments.refuse_joined(args[1:], kwargs)
        state.entered.append(state.back)
        state.came.append(state.numbers)
        if BlockInput(self.index) in (need for _, step, _ in now.steps.get(self.index, []) for need in step.needs):
            now.heard[BlockInput(self.index)] = state.units.mean(x)
        now.bias = None  # no row is absent, or counts for several, before the first merge
        if not state.moved:
            return None
        now.bias = self.bias_of(now)
        borders = None if now.windows is None else now.windows.borders
        rest, kwargs = self.arguments.following(args[1:], kwargs, state, state.prefix, borders)
        x = as_given(x, given)
        return ((x, *rest), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): x})

    def hear(self, keys: Tensor) -> None:
        now = self.merging.now
        if now is None or self.index not in now.steps:
            return
        each = in_batch(keys).unflatten(-1, (self.block.heads, -1)).float().mean(dim=2)
        now.heard[Keys(self.index)] = now.state.units.mean(each)

    @torch.no_grad()
    def hear_attention(self, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None) -> None:
        """Note what the steps of this block ask of its attention, (B, units) each, of the rows that enter."""
        now = self.merging.now
        if now is None:
            return
        state, packed = now.state, self.merging.segments is not None
        there = None if state.alike or packed else state.units.spread(state.size > 0)
        row = now.bias
        if there is not None and row is None:
            row = torch.zeros_like(there, dtype=torch.float32).masked_fill(~there, UNSEEN)
        if mask is None and row is not None:
            mask = masked(None, row)
        for need in {need for _, step, _ in now.steps.get(self.index, []) for need in step.needs}:
            if isinstance(need, (ClsAttention, AttentionReceived, AttentionMap)):
                with now.pipeline.stopwatch(query.device):
                    told = (query, key, mask, scale, cuts, there)
                    value = attention_statistic(need, *told, packed=packed, prefix=state.prefix)
                    if packed and isinstance(
                        need, AttentionReceived
                    ):  # sums over queries; the others of its picture pay a token nothing
                        rows = torch.tensor([state.units.count(n) for n in state.numbers])
                        value = value / rows.repeat_interleave(rows).to(value.device)
                    now.heard[need] = state.units.mean(value[..., None])[..., 0]

    def rows_of_windows(self) -> list[int] | None:
        """Rows that attend to each other in this block, where the tower packs."""
        now = self.merging.now
        return None if now is None or now.windows is None else now.windows.borders.diff().tolist()

    def bias_of(self, now: MergingPass) -> Tensor | None:
        """(B, n) float to be added to the logits of every row that enters; None: nothing."""
        size, ragged = now.state.size, not now.state.alike
        if not now.state.touched or not (self.proportional or ragged):
            return None
        row = now.state.counted.log() if self.proportional else torch.zeros_like(size)
        return now.state.units.spread(row.masked_fill(size == 0, UNSEEN) if ragged else row)

    def bias(self) -> Tensor | None:
        now = self.merging.now
        return None if now is None else self.in_turn(now).bias

    def in_turn(self, now: MergingPass) -> MergingPass:
        """``now``, as long as this block runs as a part of it. Errors: ``RuntimeError`` where it is run once more."""
        if now.inside != self.index:
            raise RuntimeError(
                f"vision block {self.index} runs out of turn, as gradient checkpointing runs blocks again, but its rows have "
                "been merged since; turn it off in the vision tower, or reduce behind it, by a method of another stage"
            )
        return now

    def shorten(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        now = self.merging.now
        if now is None or all(step.when != "middle" for _, step, _ in now.steps.get(self.index, [])):
            return None
        x, now.pending = self.merging.reduce(now, self.index, in_batch(args[0]), "middle")
        now.stream = x
        return (as_given(x, args[0]), *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        now = self.merging.now
        if now is None or not now.pending:
            return output
        units, x = now.state.units, in_batch(output)
        by_full_width = torch.is_grad_enabled() or module.training or torch.compiler.is_compiling()
        absent = now.kind is not None  # rows of no view, which go other ways and tell nothing
        now.branch = None if by_full_width or absent or self.adds is False else x
        with now.pipeline.stopwatch(output.device):
            if now.branch is not None and self.adds:
                return output.new_zeros(1)
            for reduction, _ in reversed(now.pending):
                spread = take_rows if reduction.covers else rows_of
                x = units.parted(spread(units.joined(x), reduction.assign))
        return as_given(x, output)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        merging, now = self.merging, self.merging.now
        if now is None:
            return output
        given = output[0] if isinstance(output, tuple) else output
        x = in_batch(given)
        with now.pipeline.stopwatch(x.device):
            if now.pending:
                x = self.merged(now, x)
        now.pending, now.stream, now.branch, now.inside = [], None, None, None
        x, _ = merging.reduce(now, self.index, x, "after")
        now.state.behind.append(now.state.numbers)
        now.state.went_on.append(now.state.back)
        last = self.index == len(merging.blocks) - 1
        if now.state.moved and ((last and merging.expand) or now.widen):
            now.rows, x = None if now.state.made is None else x, now.state.whole(x)
        if last and merging.done is not None:
            merging.done(now.state)
        x = as_given(x, given)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def merged(self, now: MergingPass, x: Tensor) -> Tensor:
        """The rows that leave the block, of what it gives ``x``: at full width, unless the branch was added to zeros."""
        direct = None if now.stream is None or now.branch is None else now.stream + now.branch
        if direct is not None and self.adds:
            return direct
        for reduction, before in now.pending:
            x = self.carried_with_branch(now, reduction, before, x)
        if direct is not None:
            off, most = (y.abs().max().item() for y in (direct - x, x))
            self.adds = off <= 8 * torch.finfo(x.dtype).eps * most
        return direct if direct is not None and self.adds else x

    @staticmethod
    def carried_with_branch(now: MergingPass, reduction: Reduction, before: Tensor, x: Tensor) -> Tensor:
        """What becomes of the rows ``x``, which are ``before`` with what the block added to them."""
        units = now.state.units
        if reduction.mix is None:
            return carried(reduction, units, x)
        added = units.parted(take_rows(units.joined(x - before), reduction.first_of_rows()))
        return carried(reduction, units, before) + added


def attach_blocks(
    merging: EncoderMerging, handles: list[Any], done: Callable[[TowerState], None] | None = None
) -> None:
    """Append the hooks of all blocks to ``handles``; none when no step merges and nobody waits for ``done``, called after each
    pass."""
    merging.done = done
    steps = [step for _, step in merging.pipeline.steps if step.stage == "encoder"]
    selects = merging.pipeline.enters is not None
    if not steps and not selects and done is None:
        return
    handles.extend(merging.grid.watch())
    for index, block in enumerate(merging.blocks):
        hook = BlockHooks(merging, index, block)
        handles.append(block.module.register_forward_pre_hook(hook.enter, with_kwargs=True))
        # before the hooks by which transformers records hidden states
        handles.append(block.module.register_forward_hook(hook.leave, prepend=True))
        if steps or selects:
            hook.proportional = any(step.proportional for step in steps)
            handles.append(block.bias_keys(hook.bias))
        if any(isinstance(need, Keys) for step in steps for need in step.needs):
            handles.append(block.listen_keys(hook.hear))
        if any(
            not isinstance(need, (Keys, BlockInput)) for step in steps if step.layer == index for need in step.needs
        ):
            packs = merging.segments is not None
            listener = TowerListener(hook.hear_attention, merging.active, hook.rows_of_windows if packs else None)
            handles.append(block.listen_attention(listener))
            if packs:
                handles.append(block.attention.register_forward_hook(listener.whole, always_call=True))
        if any(step.when == "attention" and step.layer == index for step in steps):
            handles.extend(AroundAttention(merging, index, block).attach())
        if any(step.when == "middle" for step in steps):
            handles.append(block.norm2.register_forward_pre_hook(hook.shorten))
            handles.append(block.branch.register_forward_hook(hook.spread))
