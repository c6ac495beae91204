"""Granite-Docling: tiles between markers of text, 4x4 patches a token, or 2x2 where a whole call takes the fine route."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class GraniteDocling(TileGrid):
    model_types = ("granite_docling",)
    remarks = "every tile is an image of its own; deep-stacked features lose the same rows"
    pointwise = False  # each token has a place of its own added to it

    @property
    def unit(self) -> int:
        return self.model.config.vision_config.scale_factor

    def unit_of(self, call: TowerCall) -> int:
        return self.unit // 2 if call.arguments.get("fine") else self.unit

    def facts(self) -> ModelFacts:
        return replace(super().facts(), tokens_per_image=None)

    def pictures(self, call: TowerCall) -> list[Picture]:
        height, width = (side // self.unit_of(call) for side in self.grid)
        return [Picture(Layout(height, width), height * width, pooled=True)] * call.rows

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        return self.placed(call, self.pooled(values, self.unit_of(call)), pictures)

    @property
    def projectors(self) -> list[nn.Module]:
        router = self.core.density_router
        return [self.towers[0].connector, *([] if router is None else [router])]

    def projection(self) -> Projection:
        last = self.towers[0].connector.mlp_fc2
        return Projection(last, last, last)
