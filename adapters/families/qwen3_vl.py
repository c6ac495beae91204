"""Qwen3-VL: as Qwen2-VL, with deep-stacked visual features and a timestamp before every frame of a video."""

from __future__ import annotations

from tokenreduce.adapters.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    remarks = "dynamic resolution, M-RoPE, deep-stacked features lose the same rows"
