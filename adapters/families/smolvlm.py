"""SmolVLM and Idefics3: square tiles between markers of text, pixel shuffle joins patches; each tile is an image."""

from __future__ import annotations

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection


class SmolVLM(TileGrid):
    model_types = ("idefics3", "smolvlm")
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    units_enter = True
    remarks = "every tile, and every frame of a video, is an image of its own"

    @property
    def unit(self) -> int:
        return self.model.config.scale_factor

    def projection(self) -> Projection:
        projection = self.core.connector.modality_projection
        return Projection(projection, projection, projection)
