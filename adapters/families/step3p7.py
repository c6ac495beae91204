"""Step 3.7: tiles, then the whole picture; two strided convolutions that overlap join 4x4 patches behind the tower."""

from __future__ import annotations

from dataclasses import replace

from tokenreduce.adapters.families.deepseek_ocr2 import TilesAndPage, halved
from tokenreduce.adapters.visual_inputs import TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class Step3p7(TilesAndPage):
    model_types = ("step3p7",)
    remarks = "tiles and the picture are views; convolutions mix neighbours, so that no token has patches of its own"

    def facts(self) -> ModelFacts:
        return replace(super().facts(), patches_per_token=16)

    def view(self, call: TowerCall) -> Layout:
        height, width = (halved(halved(side // self.patch)) for side in call.shape[-2:])
        return Layout(height, width)

    @property
    def patch(self) -> int:
        return self.model.config.vision_config.patch_size
