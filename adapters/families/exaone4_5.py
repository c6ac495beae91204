"""EXAONE 4.5: the tower of Qwen2.5-VL with grouped keys; a language model with positions on one axis, and windows."""

from __future__ import annotations

from tokenreduce.adapters.families.qwen2_5_vl import Qwen2_5VL
from tokenreduce.adapters.upstream.decoder import layer_type


class Exaone4_5(Qwen2_5VL):
    model_types = ("exaone4_5",)
    remarks = "dynamic resolution, window attention; positions on one axis"

    def rotates(self, layer: int) -> bool:
        windows = self.decoder.config.sliding_window is not None
        return not windows or layer_type(self.decoder.config, layer) == "sliding_attention"
