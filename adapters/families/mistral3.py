"""Mistral 3 and LightOnOCR: a Pixtral tower packs pictures of any size, 2x2 patches a token; breaks between rows are text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import Projection, TowerCall
from tokenreduce.model_facts import ModelFacts


class Mistral3(PackedRaster):
    model_types = ("mistral3", "lighton_ocr")
    remarks = "dynamic resolution; breaks between rows are text and stay"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        layer = getattr(model.config, "vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise ValueError(f"vision_feature_layer={layer!r} of this model; allowed: an int, features of one block")
        self.feature_block = layer - 1 if layer >= 0 else len(self.layers()) + layer

    @property
    def unit(self) -> int:
        return self.model.config.spatial_merge_size

    def facts(self) -> ModelFacts:
        return replace(super().facts(), feature_block=self.feature_block)

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].transformer.layers

    def sizes(self, call: TowerCall) -> list[tuple[int, int]]:
        """Pixels of each picture, down and across; those that fill up a batch left out."""
        return [(int(h), int(w)) for h, w in call.arguments["image_sizes"]]

    def grids(self, call: TowerCall) -> list[tuple[int, int, int]]:
        patch = self.towers[0].patch_size
        return [(1, h // patch, w // patch) for h, w in self.sizes(call)]

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        return [image[None, :, :h, :w] for image, (h, w) in zip(pixels, self.sizes(call))]

    def projection(self) -> Projection:
        way: Any = (
            self.core.vision_projection if hasattr(self.core, "vision_projection") else self.core.multi_modal_projector
        )
        entered = way.patch_merger.merging_layer
        return Projection(way, entered, nn.Sequential(entered, way.linear_1, way.act, way.linear_2))
