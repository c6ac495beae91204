"""Llama 3.2 Vision: tiles with a [CLS] each, two transformers in the tower; the decoder attends to them across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.families.tower_facts import by_channel
from tokenreduce.adapters.visual_inputs import Picture, Placed, TowerCall
from tokenreduce.groups import Image
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class Mllama(Family):
    model_types = ("mllama",)
    remarks = "attended to across; tiles are views, each [CLS] stays, tiles that are padding leave with the first token"
    pictures_join = "cross_attention"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.grid = vision.image_size // vision.patch_size

    def layers(self, tower: int = 0) -> Any:
        return [*self.towers[tower].transformer.layers, *self.towers[tower].global_transformer.layers]

    def facts(self) -> ModelFacts:
        return replace(super().facts(), tower_grid=(self.grid, self.grid), stages=("projector",))

    @property
    def most(self) -> int:
        """Tiles to which every picture is filled up."""
        return self.model.config.vision_config.max_num_tiles

    def tiles(self, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """(sample, place among its pictures, tiles) of each picture; aspect ratio 0 stands for none."""
        counts = arguments["aspect_ratio_mask"].sum(-1).masked_fill(arguments["aspect_ratio_ids"] == 0, 0).tolist()
        return [(b, i, n) for b, own in enumerate(counts) for i, n in enumerate(own) if n]

    def layout(self, tiles: int) -> Layout:
        one = Layout(self.grid, self.grid)
        return one if tiles == 1 else Layout(self.grid, self.grid * tiles, views=(one,) * tiles)

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [Picture(self.layout(n), n * self.grid**2, rows=0) for _, _, n in self.tiles(call.arguments)]

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        return [pixels[b, i, :n].flatten(0, 1)[None] for b, i, n in self.tiles(call.arguments)]

    def rows_attended(self, arguments: Mapping[str, Any], shape: tuple[int, int]) -> tuple[Tensor, list[Placed]]:
        each = self.grid**2 + 1
        real = torch.zeros(shape, dtype=torch.bool)
        placed: list[Placed] = []
        for b, i, n in self.tiles(arguments):
            first = i * self.most * each
            real[b, first : first + n * each] = True
            columns = torch.arange(first, first + n * each).view(n, each)[:, 1:].flatten()
            placed.append(Placed(Image(b, columns, self.layout(n)), (len(placed),)))
        real[~real.any(dim=1)] = True  # a sample without a picture attends to all that fills up its row
        return real, placed

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        return self.of_tiles(call, values.unflatten(1, (self.most, -1)))

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return by_channel(lambda x: self.of_tiles(call, x), rows.flatten(0, 1))

    def of_tiles(self, call: TowerCall, values: Tensor) -> list[Tensor]:
        """``values`` (B * pictures, tiles, rows) of each picture's tokens (N,)."""
        places = call.arguments["aspect_ratio_ids"].shape[1]
        cells = values[:, :, 1 : self.grid**2 + 1]
        return [cells[b * places + i, :n].flatten() for b, i, n in self.tiles(call.arguments)]
