"""The thinker of Qwen3-Omni: pictures as in Qwen3-VL; sounds stay whole, also where they take turns with a video."""

from __future__ import annotations

from torch import nn

from tokenreduce.adapters.families.qwen2_vl import Qwen2VL


class Qwen3OmniThinker(Qwen2VL):
    model_types = ("qwen3_omni_moe_thinker",)
    remarks = "as Qwen3-VL; sounds stay whole"

    pixel_mean = pixel_std = (0.5, 0.5, 0.5)

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.towers[0].merger, *self.towers[0].merger_list]
