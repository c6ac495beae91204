"""HyperCLOVA X Vision 2: the tower of Qwen2.5-VL, a projector behind it; positions on one axis."""

from __future__ import annotations

from torch import Tensor, nn

from tokenreduce.adapters.families.qwen2_5_vl import Qwen2_5VL
from tokenreduce.adapters.visual_inputs import Projection


class HyperClovaXVision(Qwen2_5VL):
    model_types = ("hyperclovax_vision_v2",)
    remarks = "dynamic resolution, window attention; positions on one axis"

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.towers[0].merger, self.core.projector]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return [self.towers[0].merger]

    def projection(self) -> Projection:
        first, last = self.towers[0].merger.mlp, self.core.projector

        def run(rows: Tensor) -> Tensor:
            return last(first(rows))

        return Projection(nn.ModuleList([first, last]), first, run)
