"""Ovis2: a token is a mixture of a visual vocabulary; indicators between tiles are text, though their embeddings are visual."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection


class Ovis2(TileGrid):
    model_types = ("ovis2",)
    remarks = "every tile is an image of its own; indicators between tiles stay"
    pointwise = False

    @property
    def unit(self) -> int:
        return self.model.config.vision_config.hidden_stride

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].transformer.encoder.layers

    def tower_attention(self, block: int, tower: int = 0) -> nn.Module:
        return self.layers(tower)[block].attention

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.towers[0].head_linear, self.core.visual_embeddings_table]

    def projection(self) -> Projection:
        head = self.towers[0].head_linear
        return Projection(head, head, head)
