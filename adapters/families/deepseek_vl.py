"""DeepSeek-VL and Janus: a SigLIP tower, one token a patch; of Janus only what reads pictures, not what draws them."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection


class DeepseekVL(TileGrid):
    model_types: ClassVar[tuple[str, ...]] = ("deepseek_vl", "janus")
    remarks = "SigLIP tower without pooling; Janus draws nothing while it is wrapped"

    @property
    def projectors(self) -> list:
        return [self.core.aligner]

    def projection(self) -> Projection:
        return Projection(self.core.aligner, self.core.aligner, self.core.aligner)
