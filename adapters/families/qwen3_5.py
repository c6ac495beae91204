"""Qwen3.5, dense and mixture: as Qwen3-VL; most layers of the language model keep a state instead of a cache per token."""

from __future__ import annotations

from dataclasses import replace

from tokenreduce.adapters.families.qwen3_vl import Qwen3VL
from tokenreduce.model_facts import ModelFacts


class Qwen3_5(Qwen3VL):
    model_types = ("qwen3_5", "qwen3_5_moe")
    remarks = "dynamic resolution, M-RoPE; recurrent layers read the shortened sequence"
    decoder_layers = ("full_attention", "linear_attention")

    def facts(self) -> ModelFacts:
        return replace(super().facts(), stages=("encoder", "projector", "llm"))
