"""InternVL: tiles of one size, pixel shuffle joins 2x2 patches; tiles that follow one another are one image."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapters.families.tile_grid import TileGrid


class InternVL(TileGrid):
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    pixel_mean, pixel_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    units_enter = True
    remarks = "tiles are views; [CLS] attention pooled like the patches; frames of a video are images"
    tiled = True

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.towers[0].embeddings.patch_embeddings.patch_shape)

    @property
    def unit(self) -> int:
        return round(1 / self.model.config.downsample_ratio)

    @property
    def tower_prefix(self) -> int:
        return 1 if self.model.config.vision_feature_select_strategy == "default" else 0

    def layers(self, tower: int = 0) -> list:
        return self.towers[tower].encoder.layer
