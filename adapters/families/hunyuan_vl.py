"""HunYuan-VL: a packed tower in raster order, 2x2 patches a token; a row's newline, begin and end are placeholders, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class HunYuanVL(PackedRaster):
    model_types = ("hunyuan_vl",)
    remarks = "dynamic resolution, positions of four axes, counted through a batch; newlines, begin and end stay"

    @property
    def unit(self) -> int:
        return self.model.config.vision_config.spatial_merge_size

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].layers

    def pictures(self, call: TowerCall) -> list[Picture]:
        found = []
        for _, height, width in self.grids(call):
            h, w = height // self.unit, width // self.unit
            held = tuple(1 + r * (w + 1) + c for r in range(h) for c in range(w))
            found.append(Picture(Layout(h, w), h * (w + 1) + 2, held, rows=0, pooled=self.unit > 1))
        return found

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.towers[0].patch_merger]

    def projection(self) -> Projection:
        way = self.towers[0].patch_merger
        return Projection(way, way.mlp, lambda rows: way.after_rms(way.mlp(rows)))

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """A newline enters behind every row."""
        lines = rows.split([p.layout.height * (p.layout.width + 1) for p in pictures])
        return [
            own.unflatten(0, (p.layout.height, -1))[:, :-1].flatten(0, 1)
            for own, p in zip(lines, pictures, strict=True)
        ]
