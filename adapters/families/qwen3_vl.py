"""Qwen3-VL: as Qwen2-VL, with deep-stacked visual features and a timestamp before every frame of a video."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapters.families.qwen2_vl import Qwen2VL
from tokenreduce.adapters.visual_inputs import Projection


class Qwen3VL(Qwen2VL):
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    remarks = "dynamic resolution, M-RoPE, deep-stacked features lose the same rows"

    def projection(self) -> Projection:
        merger = self.towers[0].merger
        return Projection.through(merger, merger.linear_fc1, merger.act_fn, merger.linear_fc2)
