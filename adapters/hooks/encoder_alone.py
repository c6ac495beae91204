"""A wrapped encoder by itself: what its last pass kept, what it cost, and hidden states at full width."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.hooks.encoder_blocks import EncoderMerging
from tokenreduce.adapters.hooks.last_done import LastDone
from tokenreduce.adapters.hooks.method_calls import Shadow, all_or_none
from tokenreduce.cost import Report
from tokenreduce.groups import Image, group_images
from tokenreduce.pipeline import ActivePipeline, Pipeline
from tokenreduce.traces import Trace


class EncoderHooks:
    """What a wrapped encoder carries: the encoder steps, and the trace and report of its last pass."""

    def __init__(self, family: EncoderFamily, pipeline: Pipeline, output_length: str = "full") -> None:
        self.family = family
        self.active = ActivePipeline(pipeline)
        self.expand = output_length == "full"
        self.encoder = EncoderMerging(family.blocks, self.active, family.patch_grid, family.prefix, expand=self.expand)
        self.encoder.every_block = self.expand and family.collects_blocks
        self.done = LastDone()

    def attach(self) -> list[Any]:
        with all_or_none() as handles:
            self.encoder.attach(handles, self._record)
            handles.append(self.family.tower.register_forward_hook(self.leave))
            if self.expand:
                handles += [Collecting(self.encoder, owner, name) for owner, name in self.family.collecting_methods()]
        return handles

    @property
    def pipeline(self) -> Pipeline:
        return self.active.now

    def leave(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Bring hidden states that were recorded on the way to full width."""
        state = self.encoder.state
        if not self.expand or state is None or not state.touched or not hasattr(output, "get"):
            return None
        if output.get("hidden_states") is not None:
            output["hidden_states"] = state.full_width(output["hidden_states"])
        return output

    def _record(self, state: Any) -> None:
        batch, rows = state.assign.shape
        n, prefix = rows - self.family.prefix, self.family.prefix
        columns = torch.arange(n)
        images = [Image(b, columns, layout) for b, layout in enumerate(state.layouts)]
        groups = group_images(images, state.assign.device)
        for group in groups:
            group.history = [stage.rows(group.samples) for stage in state.patches(prefix)]
        trace = Trace(groups, torch.ones(batch, n, dtype=torch.bool))
        counts = state.counts(len(self.family.blocks))
        flops = sum(block_flops(b, before, after) for b, (before, after) in zip(self.family.blocks, counts))
        whole = sum(block_flops(b, rows, rows) for b in self.family.blocks)
        kept = state.size.shape[1] - prefix
        report = Report(
            tokens_in=[[n]] * batch,
            tokens_kept=[[kept]] * batch,
            tokens_at_layer=[[before - prefix] * batch for before, _ in counts],
            flops=batch * flops,
            flops_unreduced=batch * whole,
            kv_bytes=0,
            kv_bytes_unreduced=0,
            methods=tuple(method.name for method in self.pipeline.methods),
            substitutes=self.pipeline.substitutes,
            stopwatch=self.pipeline.stopwatch.lap(),
        )
        self.done.note(trace, report)


class Collecting(Shadow):
    """Stands before the method ``name`` of ``owner``, which collects what blocks return: they all do so at full width."""

    def __init__(self, merging: EncoderMerging, owner: Any, name: str) -> None:
        super().__init__(owner, name)
        self.merging = merging

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        self.merging.collecting = True
        try:
            return self.original(*args, **kwargs)
        finally:
            self.merging.collecting = False


def block_flops(block: Block, before: int, after: int) -> int:
    """FLOPs of a block whose attention sees ``before`` tokens and whose MLP ``after``; a multiply-add counts 2."""

    def weights(module: Any) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 2)

    attention, mlp = weights(block.attention), weights(block.mlp)
    width = int(block.norm2.weight.shape[0])
    return 2 * before * attention + 4 * before * before * width + 2 * after * mlp
