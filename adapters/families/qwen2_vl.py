"""Qwen2-VL, and what its successors share: pictures packed into one sequence, 2x2 patches merged into a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block, PackedBlock
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts, PixelUnit


class Qwen2VL(Family):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    remarks = "dynamic resolution, M-RoPE; a frame is a temporal patch"
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

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].blocks

    def block(self, block: int, tower: int = 0) -> Block:
        return PackedBlock(self.layers(tower)[block])

    @property
    def projectors(self) -> list[nn.Module]:
        tower = self.towers[0]
        return [tower.merger, *getattr(tower, "deepstack_merger_list", ())]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return self.projectors

    def unit_places(self, layout: Layout) -> Tensor:
        return self.in_raster_order(super().unit_places(layout), layout.height, layout.width)

    def projection(self) -> Projection:
        merger = self.towers[0].merger
        return Projection.through(merger, *merger.mlp)

    @property
    def pixel_unit(self) -> PixelUnit | None:
        config = self.towers[0].config
        side = config.patch_size
        return PixelUnit(self.unit**2, config.in_channels, config.temporal_patch_size, side, side)

    def unit_pixels(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[Tensor]:
        return list(pixels.view(-1, self.unit**2 * pixels.shape[1]).split([picture.columns for picture in pictures]))

    def unit_rows(self, call: TowerCall, pictures: list[Picture]) -> list[Tensor]:
        numbers = torch.arange(sum(picture.columns for picture in pictures), device=call.arguments["grid_thw"].device)
        patches = torch.arange(self.unit**2, device=numbers.device)
        return [units[:, None] * self.unit**2 + patches for units in self.placed(call, numbers, pictures)]

    def grids(self, call: TowerCall) -> list[list[int]]:
        """Patches of each picture of a pass: temporal, down, across."""
        return call.arguments["grid_thw"].tolist()

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
