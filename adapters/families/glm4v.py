"""GLM-4V and GLM-OCR: as Qwen2-VL, units joined by a convolution; frames of a video hold placeholders of images."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tokenreduce.adapters.families.qwen2_vl import Qwen2VL
from tokenreduce.adapters.visual_inputs import Medium, Picture, Projection, TowerCall


class Glm4v(Qwen2VL):
    model_types = ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")
    remarks = "dynamic resolution, M-RoPE; every frame of a video is an image of its own"

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.towers[0].downsample, self.towers[0].merger]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return [self.towers[0].merger]

    def projection(self) -> Projection:
        merger = self.towers[0].merger
        return Projection(merger, merger, merger)

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [replace(picture, medium="image") for picture in super().pictures(call)]

    def placeholder_ids(self) -> dict[Medium, int]:
        return {"image": self.model.config.image_token_id}  # the id of videos is of no placeholder
