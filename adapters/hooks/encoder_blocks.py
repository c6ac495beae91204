"""Merging inside a vision encoder: four hooks per block, no forward replaced, full width again after the last block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.kernels.rows import take_rows
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.pipeline import Pipeline
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


@dataclass
class TowerState:
    """The tokens of one pass through the tower.

    Attributes:
        size: (B, N) float, rows of the unmerged tower each current row stands for.
        assign: (B, N0) long, current row of each row of the unmerged tower.
        source: (B, N) long, row of the unmerged tower each current one sits at.
        entered: per block, ``assign`` when the block was entered; ``widths``, the rows there were.
    """

    size: Tensor
    assign: Tensor
    source: Tensor
    entered: list[Tensor] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    history: list[StageTrace] = field(default_factory=list)
    touched: bool = False

    @classmethod
    def start(cls, x: Tensor) -> TowerState:
        rows = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return cls(size=torch.ones(x.shape[:2], device=x.device), assign=rows, source=rows)

    @classmethod
    def joined(cls, states: list[TowerState]) -> TowerState:
        """The images of several passes as one."""
        if len({state.size.shape[1] for state in states}) > 1:
            raise ValueError("images of one prompt were merged to different numbers of tokens; encode them in one call")

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
            history=history,
            touched=True,
        )

    def apply(self, reduction: Reduction, layer: int, method: str) -> None:
        k, joined = reduction.num_kept, reduction.assign.clamp_min(0)
        mass = self.size * (reduction.assign >= 0)
        self.size = torch.zeros(len(self.size), k, device=self.size.device).scatter_add_(1, joined, mass)
        gone = self.assign < 0
        self.assign = reduction.assign.gather(1, self.assign.clamp_min(0)).masked_fill(gone, -1)
        self.source = self.source.gather(1, reduction.source)
        self.history.append(
            StageTrace("encoder", layer, method, self.assign, self.source, self.source, None, reduction.role_names)
        )
        self.touched = True

    def patches(self, prefix: int) -> list[StageTrace]:
        """What happened, counted in patches: ``prefix`` rows left out."""

        def cut(x: Tensor) -> Tensor:
            return (x[:, prefix:] - prefix).clamp_min(-1)

        return [
            replace(p, assign=cut(p.assign), seats=cut(p.source).sort(dim=1).values, source=cut(p.source))
            for p in self.history
        ]

    def counts(self, depth: int) -> list[tuple[int, int]]:
        """Rows that attention and MLP of each block work on."""
        final = self.size.shape[1]
        entered = [int(n) for n in self.widths[:depth]]
        return list(zip(entered, [*entered[1:], final]))


class EncoderMerging:
    """Carries out the encoder steps of a pipeline in the blocks of one tower.

    Between attention and MLP a block is shortened without touching its forward: the MLP branch is given the merged
    residual stream, its output is spread back to full width for the addition, and the block's output is merged. As
    merging is linear and constant on groups, ``merge(x + spread(m)) = merge(x) + m``.
    """

    def __init__(
        self, blocks: list[Block], pipeline: Pipeline, layout: Layout | None, prefix: int, *, expand: bool = True
    ) -> None:
        """``expand``: whether the last block gives each unmerged row a copy of the row that stands for it."""
        self.blocks = blocks
        self.pipeline = pipeline
        self.layout = layout
        self.prefix = prefix
        self.expand = expand
        self.state: TowerState | None = None
        self.keys: Tensor | None = None
        self.pending: list[Reduction] = []
        self.done: Callable[[TowerState], None] | None = None

    def attach(self, handles: list[Any], done: Callable[[TowerState], None] | None = None) -> None:
        """Append the hooks to ``handles``; none when no step merges and nobody waits for ``done``, called after each pass."""
        self.done = done
        steps = [step for _, step in self.pipeline.steps if step.stage == "encoder"]
        if not steps and done is None:
            return
        for index, block in enumerate(self.blocks):
            hook = BlockHooks(self, index, block)
            handles.append(block.module.register_forward_pre_hook(hook.enter, with_kwargs=True))
            # before the hooks by which transformers records hidden states
            handles.append(block.module.register_forward_hook(hook.leave, prepend=True))
            if any(step.proportional for step in steps):
                handles.append(block.bias_keys(hook.bias))
            if any(isinstance(need, Keys) for step in steps for need in step.needs):
                handles.append(block.listen_keys(hook.hear))
            if any(step.when == "middle" for step in steps):
                handles.append(block.norm2.register_forward_pre_hook(hook.shorten))
                handles.append(block.mlp.register_forward_hook(hook.spread))

    def reduce(self, index: int, x: Tensor, steps: list[tuple[Method, Step]]) -> tuple[Tensor, list[Reduction]]:
        """Ask the methods of a block, one after the other; returns what becomes of ``x`` and their reductions."""
        state = self.state
        assert state is not None
        done = []
        for method, step in steps:
            if method.is_identity(state.assign.shape[1] - self.prefix):
                continue
            layout = self.layout or Layout(1, state.assign.shape[1] - self.prefix)
            with self.pipeline.stopwatch(x.device):
                tokens = VisualTokens(
                    features=x,
                    layout=layout,
                    stage="encoder",
                    layer=index,
                    source=state.source,
                    size=state.size,
                    signals={need: self.keys for need in step.needs if isinstance(need, Keys)},  # type: ignore[misc]
                    prefix=self.prefix,
                    amount=step.amount,
                )
                reduction = method.reduce(tokens).check(tokens)
                if reduction.valid is not None:
                    raise ValueError(
                        f"method={method.name!r} keeps a different number of tokens per image in encoder block {index}; "
                        "a dense tower needs equal counts: run images one by one, or use a fixed budget"
                    )
                if reduction.does_nothing(x.shape[1]):
                    continue
                state.apply(reduction, index, method.name)
                x = reduction.carry(x)
            done.append(reduction)
        return x, done

    @staticmethod
    def full_width(state: TowerState, states: Any) -> Any:
        """Recorded hidden states (after 0, 1, 2, ... blocks; entries may be None) at full width."""
        maps = [*state.entered, state.assign]
        full = state.assign.shape[1]
        return tuple(
            h if h is None or h.shape[1] == full else _rows(h, maps[min(i, len(maps) - 1)])
            for i, h in enumerate(states)
        )


class BlockHooks:
    """The hooks of one block. What it has to do is looked up at every pass: the budget may have changed."""

    def __init__(self, merging: EncoderMerging, index: int, block: Block) -> None:
        self.merging = merging
        self.index = index
        self.block = block

    def steps(self, when: str) -> list[tuple[Method, Step]]:
        return [(m, s) for m, s in self.merging.pipeline.at("encoder", self.index) if s.when == when]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.index == 0:
            self.merging.state = TowerState.start(args[0] if args else next(iter(kwargs.values())))
            self.merging.pending = []
        state = self.merging.state
        if state is None:
            return None
        state.entered.append(state.assign)
        state.widths.append(state.size.shape[1])
        rope = kwargs.get("rope")
        if rope is None or not state.touched:
            return None
        patches = state.source[:, self.merging.prefix :] - self.merging.prefix
        table = rope.expand(len(patches), *rope.shape[-2:]) if rope.ndim < 4 else rope[:, 0]
        return args, {**kwargs, "rope": _rows(table, patches)[:, None]}

    def hear(self, keys: Tensor) -> None:
        if not self.merging.pipeline.at("encoder", self.index):
            return
        batch, n, width = keys.shape
        self.merging.keys = keys.reshape(batch, n, self.block.heads, width // self.block.heads).float().mean(dim=2)

    def bias(self) -> Tensor | None:
        state = self.merging.state
        return state.size.log() if state is not None and state.touched else None

    def shorten(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        steps = self.steps("middle")
        if not steps:
            return None
        x, self.merging.pending = self.merging.reduce(self.index, args[0], steps)
        return (x, *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        with self.merging.pipeline.stopwatch(output.device):
            for reduction in reversed(self.merging.pending):
                output = _rows(output, reduction.assign)
        return output

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        with self.merging.pipeline.stopwatch(x.device):
            for reduction in self.merging.pending:
                x = reduction.carry(x)
        self.merging.pending = []
        x, _ = self.merging.reduce(self.index, x, self.steps("after"))
        state = self.merging.state
        if self.index == len(self.merging.blocks) - 1 and state is not None:
            if self.merging.expand and state.touched:
                x = _rows(x, state.assign)
            if self.merging.done is not None:
                self.merging.done(state)
        return (x, *output[1:]) if isinstance(output, tuple) else x


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) of ``x`` (B, N, D); -1, a token that is gone, gives the first row."""
    return take_rows(x, index.clamp_min(0))
