"""Qianfan-OCR: as InternVL, with a Qwen3 language model."""

from __future__ import annotations

from tokenreduce.adapters.families.internvl import InternVL


class QianfanOCR(InternVL):
    model_types = ("qianfan_ocr",)
    units_enter = False
    remarks = "tiles are views; [CLS] attention pooled like the patches"

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        height, width = (side // patch for side, patch in zip(vision.image_size, vision.patch_size))
        return height, width

    def layers(self, tower: int = 0) -> list:
        return self.towers[tower].layers
