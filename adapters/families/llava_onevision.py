"""LLaVA-OneVision: any-resolution images, scaled down above a number of tiles; frames pooled, one newline per video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tokenreduce.adapters.families.any_resolution import AnyresTower
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class LlavaOnevision(AnyresTower):
    model_types = ("llava_onevision",)
    remarks = "tiles are views; frames pooled, newlines stay"
    streams_as = "video"

    def facts(self) -> ModelFacts:
        return replace(super().facts(), interpolated="videos, and images scaled down after tiling")

    def videos(self, call: TowerCall) -> list[Picture]:
        frames, side = call.arguments["frames"], -(-self.grid // 2)
        layout = Layout(side, side, frames=frames)
        n = layout.num_tokens
        video = Picture(layout, n + 1, tuple(range(n)), rows=frames, medium="video", pooled=True)
        return [video] * (call.rows // frames)

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        if "pack" in call.arguments:
            return super().per_picture(call, values, pictures, block)
        pooled = self.core.apply_pooling(self.tower_tokens(values).unsqueeze(-1))
        return self.placed(call, pooled.flatten(1), pictures)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        if "pack" not in call.arguments:
            return [None] * len(pictures)
        found = super().projected_per_picture(call, rows, pictures)
        return [None if picture.pooled else own for picture, own in zip(pictures, found)]
