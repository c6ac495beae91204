"""Muse Glimmer: a packed tower sorted by windows of patches, 2x2 patches a token in front of the projector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.packed_raster import PackedRaster, from_windows
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.model_facts import ModelFacts


class MuseGlimmer(PackedRaster):
    model_types = ("muse_glimmer",)
    remarks = "dynamic resolution, window attention; a frame is a temporal patch"

    @property
    def unit(self) -> int:
        return self.towers[0].merge_size

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].layers

    def facts(self) -> ModelFacts:
        kinds = self.towers[0].config.layer_types
        return replace(
            super().facts(), full_blocks=tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
        )

    def rotates(self, layer: int) -> bool:
        return bool(self.decoder.config.layer_rope_theta[layer])

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        side = self.towers[0].window_size // self.towers[0].patch_size
        own = zip(values.split(self.patch_counts(call)), self.grids(call))
        raster = torch.cat([from_windows(rows, h, w, side) for rows, (_, h, w) in own])
        return super().per_picture(call, raster, pictures, block)

    def projection(self) -> Projection:
        core = self.core
        way = nn.Sequential(core.vision_adapter, core.vision_projection, core.perception_emb_norm)
        return Projection(way, core.vision_adapter, way)
