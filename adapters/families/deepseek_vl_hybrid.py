"""DeepSeek-VL with two towers, which see every picture at two sizes: scores are those of the SigLIP tower."""

from __future__ import annotations

from torch import nn

from tokenreduce.adapters.families.deepseek_vl import DeepseekVL
from tokenreduce.adapters.visual_inputs import Projection


class DeepseekVLHybrid(DeepseekVL):
    model_types = ("deepseek_vl_hybrid",)
    remarks = "SigLIP beside SAM, whose features stand side by side in a token; scores are SigLIP's"
    pointwise = False

    @property
    def beside(self) -> list[nn.Module]:
        core = self.core
        return [core.high_res_vision_model, core.high_res_vision_neck, core.high_res_vision_proj]

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.aligner, *self.beside]

    @property
    def opaque(self) -> list[nn.Module]:
        return self.beside

    def projection(self) -> Projection:
        first = self.core.aligner.vision_proj
        return Projection(first, first, first)
