"""Aya Vision: a SigLIP tower, pixel shuffle in the projector, tiles between markers of text."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.upstream.decoder import layer_type
from tokenreduce.adapters.visual_inputs import Projection


class AyaVision(TileGrid):
    model_types: ClassVar[tuple[str, ...]] = ("aya_vision",)
    remarks = "every tile is an image of its own"

    @property
    def unit(self) -> int:
        return self.model.config.downsample_factor

    def projection(self) -> Projection:
        projector, unit = self.core.multi_modal_projector, self.unit

        def run(rows: Tensor) -> Tensor:
            """Each row as an image of its own, of as many patches as it consists of."""
            return projector(rows.reshape(-1, unit**2, rows.shape[-1] // unit**2)).view(*rows.shape[:-1], -1)

        return Projection(projector, getattr(projector, "layernorm", projector.linear_1), run)

    def projected_cells(self, rows: Tensor) -> Tensor:
        return rows.flatten(1, 2)

    def rotates(self, layer: int) -> bool:
        return layer_type(self.decoder.config, layer) == "sliding_attention"
