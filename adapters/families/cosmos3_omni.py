"""The reasoner of Cosmos 3: Qwen3-VL under a name of its own."""

from __future__ import annotations

from tokenreduce.adapters.families.qwen3_vl import Qwen3VL


class Cosmos3Omni(Qwen3VL):
    model_types = ("cosmos3_omni",)
