"""FastVLM: a convolutional tower of timm, one token per cell of its last map."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection
from tokenreduce.layout import Layout


class FastVLM(TileGrid):
    model_types = ("fast_vlm",)
    remarks = "a convolutional tower, which has no attention to listen to"
    heard = False

    def layers(self, tower: int = 0) -> Any:
        return []

    def view(self) -> Layout:
        side = int(self.model.config.image_seq_length**0.5)
        return Layout(side, side)

    def projection(self) -> Projection:
        projector = self.core.multi_modal_projector
        return Projection.through(projector, projector.linear_1, projector.act, projector.linear_2)
