"""PerceptionLM: an encoder of timm, averages of squares of tokens; tiles that follow one another are one image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Picture, TowerCall


class PerceptionLM(TileGrid):
    model_types = ("perception_lm",)
    remarks = "tiles are views; an encoder of timm, whose attention is not listened to"
    tiled = True
    pointwise = heard = False

    @property
    def grid(self) -> tuple[int, int]:
        return self.towers[0].timm_model.patch_embed.grid_size

    @property
    def unit(self) -> int:
        return self.model.config.projector_pooling_ratio

    def layers(self, tower: int = 0) -> Any:
        return []

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [replace(tile, medium=None) for tile in super().pictures(call)]
