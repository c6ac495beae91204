"""InternVL: tiles of one size, pixel shuffle joins 2x2 patches; tiles that follow one another are one image."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts


class InternVL(Family):
    model_types = ("internvl",)
    remarks = "tiles are views; [CLS] attention pooled like the patches; frames of a video are images"
    tiled = True

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a tile, down and across."""
        return tuple(self.towers[0].embeddings.patch_embeddings.patch_shape)

    @property
    def tower_prefix(self) -> int:
        return 1 if self.model.config.vision_feature_select_strategy == "default" else 0

    def layers(self, tower: int = 0) -> list:
        return self.towers[tower].encoder.layer

    def facts(self) -> ModelFacts:
        depth, layer = len(self.layers()), self.model.config.vision_feature_layer
        return ModelFacts(
            family="internvl",
            tower_depth=depth,
            feature_block=layer - 1 if layer >= 0 else depth + layer,
            has_cls=self.tower_prefix > 0,
            tower_prefix=self.tower_prefix,
            tower_grid=self.grid,
            patches_per_token=round(1 / self.model.config.downsample_ratio) ** 2,
            decoder_depth=self.decoder.config.num_hidden_layers,
            stages=("projector", "llm", "cache"),
        )

    def pictures(self, call: TowerCall) -> list[Picture]:
        ratio = self.model.config.downsample_ratio
        height, width = (int(side * ratio) for side in self.grid)
        return [Picture(Layout(height, width), height * width, pooled=True)] * call.rows

    def tower_tokens(self, values: Tensor) -> Tensor:
        patches = values[:, self.tower_prefix :].unflatten(1, self.grid).unsqueeze(-1)
        return self.core.pixel_shuffle(patches, scale_factor=self.model.config.downsample_ratio).mean(dim=-1).flatten(1)
