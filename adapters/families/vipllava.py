"""VipLLaVA: LLaVA whose projector is fed several blocks of the tower side by side, always without the [CLS]."""

from __future__ import annotations

from tokenreduce.adapters.families.llava import Llava
from tokenreduce.adapters.visual_inputs import Projection


class VipLlava(Llava):
    model_types = ("vipllava",)
    remarks = "several blocks of a CLIP tower side by side"

    def projection(self) -> Projection:
        projector = self.core.multi_modal_projector
        return Projection.through(projector, projector.linear_1, projector.act, projector.linear_2)
