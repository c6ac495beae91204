"""PaddleOCR-VL: a SigLIP tower that packs pages in raster order, 2x2 patches a token in the projector; three-axis positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import Projection, TowerCall


class PaddleOCRVL(PackedRaster):
    model_types = ("paddleocr_vl",)
    remarks = "dynamic resolution, M-RoPE"

    @property
    def unit(self) -> int:
        return self.model.config.vision_config.spatial_merge_size

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].vision_model.encoder.layers

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        return super().pieces(call, pixels.flatten(0, 1))

    def projection(self) -> Projection:
        way = self.core.projector
        layers = (way.linear_1, way.act, way.linear_2)
        return Projection(way, way.linear_1, nn.Sequential(*layers), layers)
