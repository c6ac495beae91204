"""Families whose tower packs pictures of any size into one sequence of patches, unit by unit, and joins these behind it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class PackedSquares(Family):
    """A unit is a square of patches, which follow one another."""

    packs = True

    @property
    def unit(self) -> int:
        return self.towers[0].config.spatial_merge_size

    def facts(self) -> ModelFacts:
        facts = super().facts()
        inside = ("encoder",) if self.unit_mergers else ()
        return replace(facts, full_blocks=self.full_blocks, stages=(*inside, *facts.stages))

    @property
    def full_blocks(self) -> tuple[int, ...] | None:
        """Blocks of the tower whose attention is not cut into windows; None: all of them."""
        return None

    def unit_places(self, layout: Layout) -> Tensor:
        return self.in_raster_order(super().unit_places(layout), layout.height, layout.width)

    def grids(self, call: TowerCall) -> list[list[int]]:
        """Patches of each picture of a pass: temporal, down, across."""
        return call.numbers("grid_thw")

    def patch_counts(self, call: TowerCall) -> list[int]:
        return [t * h * w for t, h, w in self.grids(call)]

    def pictures(self, call: TowerCall) -> list[Picture]:
        layouts = [Layout(h // self.unit, w // self.unit, frames=t) for t, h, w in self.grids(call)]
        return [Picture(layout, layout.num_tokens, rows=0, medium=None, pooled=True) for layout in layouts]

    def tower_tokens(self, values: Tensor) -> Tensor:
        return values.view(-1, self.unit**2).mean(dim=1)

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        own = zip(values.split([p.columns for p in pictures]), self.grids(call))
        return [self.in_raster_order(units, h // self.unit, w // self.unit) for units, (_, h, w) in own]

    def in_raster_order(self, units: Tensor, height: int, width: int) -> Tensor:
        """Values (T * height * width,) of a picture's units, from the order of the tower to raster order."""
        return units
