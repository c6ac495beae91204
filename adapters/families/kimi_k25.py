"""Kimi K2.5: a packed MoonViT in raster order, 2x2 patches a token, a video averaged over its frames behind the tower."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.families.packed_squares import PackedSquares
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class KimiK25(PackedSquares):
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)
    remarks = "dynamic resolution; the frames of a chunk of video are one picture; latent attention"

    @property
    def unit(self) -> int:
        return self.towers[0].merge_kernel_size[0]

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].layers

    def projection(self) -> Projection:
        way = self.core.mm_projector
        layers = (way.in_proj, way.act, way.out_proj)
        return Projection(way, way.in_proj, nn.Sequential(*layers), layers)

    def pictures(self, call: TowerCall) -> list[Picture]:
        layouts = [Layout(h // self.unit, w // self.unit) for _, h, w in self.grids(call)]
        return [Picture(layout, layout.num_tokens, rows=0, medium=None, pooled=True) for layout in layouts]

    def tower_tokens(self, values: Tensor) -> Tensor:
        return values

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        films = [
            own.view(t, 1, h, w) for own, (t, h, w) in zip(values.split(self.patch_counts(call)), self.grids(call))
        ]
        return [F.avg_pool2d(film.mean(dim=0, keepdim=True), self.unit).flatten() for film in films]

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> list[Tensor]:
        return list(rows.split([picture.columns for picture in pictures]))
