"""Llama 4: pixel shuffle inside the tower, whose [CLS] is the last row; decoder layers that attend within chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.model_facts import ModelFacts


class Llama4(TileGrid):
    model_types = ("llama4",)
    remarks = (
        "every tile is an image of its own; most decoder layers attend within chunks; transformers 5.24 itself fails"
    )
    decoder_layers = ("full_attention", "chunked_attention")

    @property
    def unit(self) -> int:
        return round(1 / self.model.config.vision_config.pixel_shuffle_ratio)

    def facts(self) -> ModelFacts:  # no block is merged in whose [CLS] is its last row
        return replace(super().facts(), stages=("projector", "llm", "cache"))

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].model.layers

    def rotates(self, layer: int) -> bool:
        return bool(self.decoder.config.no_rope_layers[layer])

    def pooled(self, values: Tensor, unit: int) -> Tensor:
        area = self.grid[0] * self.grid[1]
        return F.avg_pool2d(values[:, :area].unflatten(1, (1, *self.grid)), unit).flatten(1)

    def projected_cells(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self.view().num_tokens, rows.shape[-1])
