"""Ernie 4.5 VL: the tower of Qwen2-VL; two frames of a video are one step of time behind it; experts by modality."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tokenreduce.adapters.families.qwen2_vl import Qwen2VL
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class Ernie4_5VL(Qwen2VL):
    model_types: ClassVar[tuple[str, ...]] = ("ernie4_5_vl_moe",)
    pixel_unit = None  # two frames of a video are joined in a token behind the tower
    remarks = "dynamic resolution, M-RoPE; two frames of a video are one step of time"

    def steps(self, frames: int) -> int:
        """Steps of time that ``frames`` become behind the tower."""
        return 1 if frames == 1 else frames // self.core.resampler_model.temporal_merge_size

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.resampler_model]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return []

    def projection(self) -> Projection:
        way = self.core.resampler_model
        return Projection(way, way.mlp, nn.Sequential(way.mlp, way.after_norm))

    def pictures(self, call: TowerCall) -> list[Picture]:
        layouts = [Layout(h // self.unit, w // self.unit, frames=self.steps(t)) for t, h, w in self.grids(call)]
        return [Picture(layout, layout.num_tokens, rows=0, medium=None, pooled=True) for layout in layouts]

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        found = values.split([n // self.unit**2 for n in self.patch_counts(call)])
        return [
            own.view(p.layout.frames, -1, p.layout.height * p.layout.width).mean(1).flatten()
            for own, p in zip(found, pictures)
        ]

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> list[Tensor]:
        return list(rows.split([picture.columns for picture in pictures]))
