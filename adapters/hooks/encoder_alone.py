"""A wrapped encoder by itself: what its last pass kept, what it cost, and hidden states at full width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.patch_grid import cells_of
from tokenreduce.adapters.hooks.encoder_blocks import attach_blocks
from tokenreduce.adapters.hooks.encoder_merging import EncoderMerging
from tokenreduce.adapters.hooks.encoding_cost import BlockShape
from tokenreduce.adapters.hooks.last_done import LastDone
from tokenreduce.adapters.hooks.merged_tokens import in_patches
from tokenreduce.adapters.hooks.method_calls import Shadow, all_or_none
from tokenreduce.adapters.hooks.tower_history import history_of
from tokenreduce.adapters.hooks.tower_state import TowerState
from tokenreduce.adapters.hooks.unit_selection import chosen as chosen_units
from tokenreduce.cost import Report
from tokenreduce.groups import Image, ImageGroup, group_images
from tokenreduce.kernels.fingerprint import fingerprint
from tokenreduce.layout import Layout
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.pipeline import ActivePipeline, Pipeline
from tokenreduce.provenance import StageTrace
from tokenreduce.signals import ImageFingerprint
from tokenreduce.traces import Trace


class EncoderHooks:
    """What a wrapped encoder carries: the encoder steps, and the trace and report of its last pass."""

    chosen = PerThread[list[StageTrace | None] | None](nothing)  # what happened to each image before the first block

    def __init__(self, family: EncoderFamily, pipeline: Pipeline, output_length: str = "full") -> None:
        self.family = family
        self.active = ActivePipeline(pipeline)
        self.expand = output_length == "full"
        self.encoder = EncoderMerging(family.blocks, self.active, family.patch_grid, family.prefix, expand=self.expand)
        if pipeline.enters:
            raise ValueError(
                f"layer={pipeline.enters} at stage 'pixels' in an encoder by itself; allowed: patches that leave in front of its "
                "first block"
            )
        if pipeline.enters is not None:
            self.encoder.entering = self.entering
            family.patch_grid.wanted = True
        self.encoder.every_block = self.expand and family.collects_blocks
        self.shapes = [BlockShape.of(block.module, block.attention) for block in family.blocks]
        self.done = LastDone()

    def attach(self) -> list[Any]:
        with all_or_none() as handles:
            attach_blocks(self.encoder, handles, self._record)
            handles.append(self.family.tower.register_forward_hook(self.leave))
            if self.expand:
                handles += [Collecting(self.encoder, owner, name) for owner, name in self.family.collecting_methods()]
        return handles

    @property
    def pipeline(self) -> Pipeline:
        return self.active.now

    def entering(self, layouts: Sequence[Layout]) -> Tensor | None:
        """(B, n) bool, which patches of the pass that is running enter the first block; None: all."""
        grid, self.chosen = self.family.patch_grid, None
        pixels, unit = grid.pixels, grid.unit
        if pixels is None or unit is None or len({layout.num_tokens for layout in layouts}) > 1:
            raise ValueError(
                "the pixels of this pass are not known: it did not begin at the patch embedding; call the encoder with images, "
                "or leave out the method of stage 'pixels'"
            )
        values = cells_of(pixels, (unit.height, unit.width))
        prints = list(fingerprint(pixels)) if ImageFingerprint() in self.pipeline.listens else []
        scale = (self.family.pixel_mean, self.family.pixel_std)
        with torch.no_grad():
            self.chosen = found = chosen_units(self.pipeline, layouts, list(values), prints, scale)
        if found is None:
            return None
        everything = torch.ones(values.shape[1], dtype=torch.bool, device=values.device)
        return torch.stack([everything if passed is None else passed.assign >= 0 for passed in found])

    def leave(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Bring hidden states that were recorded on the way to full width."""
        state = self.encoder.state
        if not self.expand or state is None or not state.touched or not hasattr(output, "get"):
            return None
        if output.get("hidden_states") is not None:
            output["hidden_states"] = state.full_width(output["hidden_states"])
        return output

    def _record(self, state: TowerState) -> None:
        counts, whole = state.counts(len(self.shapes)), state.unmerged

        def tokens(numbers: list[int], fronts: int = 1) -> list[int]:
            """Patches of each image, or of each video where frames went on as one sequence, each of ``fronts``."""
            each = len(numbers) // len(state.numbers)
            prefix = state.units.prefix * fronts * each
            return [sum(numbers[i : i + each]) - prefix for i in range(0, len(numbers), each)]

        report = Report(
            tokens_in=[[n] for n in tokens(whole)],
            tokens_kept=[[n] for n in tokens(state.numbers, state.fronts)],
            tokens_at_layer=[tokens(before, back.fronts) for (before, _), back in zip(counts, state.entered)],
            flops=sum(
                shape.flops(*passed, state.around.get(block))
                for block, (shape, passed) in enumerate(zip(self.shapes, counts, strict=True))
            ),
            flops_unreduced=sum(shape.flops(whole, whole) for shape in self.shapes),
            kv_bytes=0,
            kv_bytes_unreduced=0,
            methods=tuple(method.name for method in self.pipeline.methods),
            substitutes=self.pipeline.substitutes,
            stopwatch=self.pipeline.stopwatch.lap(),
        )
        self.done.note(partial(self._trace, state, self.chosen), report)

    def _trace(self, state: TowerState, chosen: list[StageTrace | None] | None) -> Trace:
        """The images of a pass with what happened to each."""
        device, prefix = state.assign.device, state.whole_prefix
        fronts = [state.units.prefix * front for front in state.fronts_left]
        alike: dict[Any, list[int]] = {}
        for b, layout in enumerate(state.layouts):
            # of equally many rows
            alike.setdefault((layout, state.numbers[b], *(left[b] for left in state.left)), []).append(b)
        groups: list[ImageGroup] = []
        for images in alike.values():
            columns = torch.arange(state.layouts[images[0]].num_tokens)
            (group,) = group_images([Image(b, columns, state.layouts[b]) for b in images], device)
            group.members = images
            group.history = in_patches(history_of(state, images), prefix, fronts)
            made = [passed for b in images if chosen and (passed := chosen[b]) is not None]
            if made:
                group.history = [StageTrace.stacked(made)]
            groups.append(group)
        numbers = torch.tensor([layout.num_tokens for layout in state.layouts])
        return Trace(groups, torch.arange(int(numbers.max())) < numbers[:, None])


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
