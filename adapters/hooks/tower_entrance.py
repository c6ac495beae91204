"""What enters the towers of a vision-language model: asked of the methods when a pass begins, carried out at the first block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.packed_entrance import EnteringRows, PackedEntrance
from tokenreduce.adapters.hooks.tower_passes import TowerPass
from tokenreduce.adapters.hooks.unit_selection import choose_units
from tokenreduce.layout import Layout
from tokenreduce.pipeline import ActivePipeline, Pipeline


class TowerEntrance:
    """The units of each pass that enter; ``packed`` are the hooks of towers that pack pictures."""

    def __init__(self, family: Family, pipeline: ActivePipeline) -> None:
        self.family = family
        self.pipeline = pipeline
        first = pipeline.now.enters
        if first and not family.packs:
            raise ValueError(
                f"layer={first} at stage 'pixels' on a {pipeline.now.facts.family} model, whose tower runs pictures as a batch; "
                "allowed: units that leave in front of its first block"
            )
        selects = first is not None and family.packs
        self.packed = [PackedEntrance(family, t) for t in range(len(family.towers))] if selects else []

    def attach(self, tower: int, handles: list[Any]) -> None:
        """Append the hooks of ``tower`` to ``handles``, before all others on its blocks."""
        if self.packed:
            self.packed[tower].attach(handles)

    def begin(self, call: TowerPass, pixels: Tensor) -> None:
        """Let a part of ``pixels`` enter the blocks of the pass ``call``."""
        pipeline: Pipeline = self.pipeline.now
        if pipeline.enters is None:
            return
        call.selection = chosen = choose_units(self.family, pipeline, call, pixels, call.prints)
        if not self.packed:
            return
        if chosen is not None:
            whole = chosen.entering(sum(self.family.patch_counts(call)))
            call.entered = EnteringRows.of(whole, chosen.rows[0].shape[1], pipeline.enters, call.cost)
        self.packed[call.tower].now = call.entered

    @staticmethod
    def in_batch(call: TowerPass, layouts: Sequence[Layout]) -> Tensor | None:
        """(B, n) bool, which patches of the batch of ``call`` enter, each image as ``layouts`` say; None: all."""
        chosen, n = call.selection, layouts[0].num_tokens
        return None if chosen is None else chosen.entering(len(layouts) * n).view(len(layouts), n)
