"""Idefics2: a fixed number of latents, which a perceiver fills from a SigLIP tower at the picture's own size."""

from __future__ import annotations

from torch import nn

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection
from tokenreduce.layout import Layout


class Idefics2(TileGrid):
    model_types = ("idefics2",)
    remarks = "tokens are latents of a perceiver, which have no place in the picture"
    pointwise = heard = False  # patches are scored, not latents

    def view(self) -> Layout:
        return Layout(1, self.model.config.perceiver_config.resampler_n_latents)

    @property
    def opaque(self) -> list[nn.Module]:
        return [self.core.connector]

    def projection(self) -> Projection:
        projection = self.core.connector.modality_projection
        return Projection(projection, projection, projection)
