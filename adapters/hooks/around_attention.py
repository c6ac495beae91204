"""Around the attention of one block: rows merge in front of it, and each place is given a copy of its row behind it.

Where nothing but a matrix is between the rows and queries, keys and values, the mean of rows gives the mean of these, and the
module runs on fewer rows. In the attention functions of transformers, where norms and rotation may come in between, queries,
keys and values merge instead.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import MergedAttention
from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.hooks.encoder_merging import EncoderMerging
from tokenreduce.adapters.hooks.merging_pass import MergingPass
from tokenreduce.attention_rows import AttentionRows
from tokenreduce.per_thread import PerThread, nothing


class AroundAttention:
    """The hooks around the attention of block ``index``."""

    rows = PerThread[AttentionRows | None](nothing)  # of the attention under way

    def __init__(self, merging: EncoderMerging, index: int, block: Block) -> None:
        self.merging = merging
        self.index = index
        self.block = block
        self.inside = block.merges_heads

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook in front of the attention, whose input says what it runs on."""
        now, self.rows = self.merging.now, None
        if now is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        with now.pipeline.stopwatch(x.device):
            self.rows = rows = asked(now, self.index, x)
        if rows is None:
            return None
        projected = x.shape[1] if self.inside else rows.count
        now.state.around[self.index] = [(projected, rows.count)] * len(x)
        if self.inside:
            return None

        def merged(value: Any) -> Any:
            return rows.merge(value) if isinstance(value, Tensor) and value.shape[:2] == x.shape[:2] else value

        return tuple(map(merged, args)), {name: merged(value) for name, value in kwargs.items()}

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook behind it; ``output`` is None where it raised."""
        rows, self.rows = self.rows, None
        if rows is None or output is None or self.inside:
            return None
        whole = rows.copy_back(output[0] if isinstance(output, tuple) else output)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def now(self) -> AttentionRows | None:
        return self.rows

    def attach(self) -> list[Any]:
        attention = self.block.attention
        handles: list[Any] = [
            attention.register_forward_pre_hook(self.enter, with_kwargs=True),
            attention.register_forward_hook(self.leave, prepend=True, always_call=True),
        ]
        return [*handles, MergedAttention(self.block.core, self.now)] if self.inside else handles


def asked(now: MergingPass, index: int, x: Tensor) -> AttentionRows | None:
    """What the attention of block ``index`` runs on, of its input ``x`` (B, N, D); None: of all its rows.

    Errors: ``ValueError`` where two methods say so, or rows do not all count once.
    """
    steps = [own for own in now.steps.get(index, []) if own.step.when == "attention"]
    if not steps:
        return None
    if len(steps) > 1:
        raise ValueError(
            f"methods={[own.method.name for own in steps]} merge around the attention of block {index}; allowed: one of them"
        )
    if now.bias is not None or not now.state.alike:
        raise ValueError(
            f"method={steps[0].method.name!r} merges around the attention of block {index}, whose rows count several times, or "
            "only fill up their image; allowed: images of one size, and no method with proportional=True in front of it"
        )
    tokens = now.shown(x, index, steps[0])
    return steps[0].method.around(tokens).check(*x.shape[:2])
