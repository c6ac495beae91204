"""Cohere Compass: the tower of Qwen3-VL; a parallel decoder, some kinds of whose layers may rotate nothing."""

from __future__ import annotations

from tokenreduce.adapters.families.qwen3_vl import Qwen3VL
from tokenreduce.adapters.upstream.decoder import layer_type


class CohereCompass(Qwen3VL):
    model_types = ("cohere_compass",)

    def rotates(self, layer: int) -> bool:
        config = self.decoder.config
        return config.rope_parameters[layer_type(config, layer)] is not None
