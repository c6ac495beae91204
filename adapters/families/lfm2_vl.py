"""LFM2-VL: pictures padded to one number of patches, 2x2 of them in a token; short convolutions in the decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class Lfm2VL(Family):
    model_types = ("lfm2_vl",)
    remarks = "tiles and thumbnail are images of their own; short convolutions read the shortened sequence"
    decoder_layers = ("full_attention", "conv")

    @property
    def unit(self) -> int:
        return self.model.config.downsample_factor

    def grids(self, call: TowerCall) -> list[list[int]]:
        """Patches of each picture, down and across."""
        return call.numbers("spatial_shapes")

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        return [own[None, : h * w] for own, (h, w) in zip(pixels, self.grids(call))]

    def pictures(self, call: TowerCall) -> list[Picture]:
        layouts = [Layout(h // self.unit, w // self.unit) for h, w in self.grids(call)]
        return [Picture(layout, layout.num_tokens, pooled=True) for layout in layouts]

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        patches = [own[: h * w].view(1, 1, h, w) for own, (h, w) in zip(values, self.grids(call))]
        return [F.avg_pool2d(own, self.unit).flatten() for own in patches]

    def projection(self) -> Projection:
        way = self.core.multi_modal_projector
        return Projection(way, way.linear_1, lambda rows: way.linear_2(way.act(way.linear_1(rows))))

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """Every picture has room for as many tokens as the largest can have."""
        room = call.shape[1] // self.unit**2
        return [own[: p.columns] for own, p in zip(rows.flatten(0, -2).split(room), pictures)]
