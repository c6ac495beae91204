"""LLaVA-OneVision: any-resolution images, scaled down above a number of tiles; frames pooled, one newline per video."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.adapters.families.any_resolution import AnyresTower
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout


class LlavaOnevision(AnyresTower):
    model_types = ("llava_onevision",)
    remarks = "tiles are views; frames pooled, newlines stay"

    def videos(self, call: TowerCall) -> list[Picture]:
        frames, side = call.arguments["frames"], -(-self.grid // 2)
        layout = Layout(side, side, frames=frames)
        n = layout.num_tokens
        video = Picture(layout, n + 1, tuple(range(n)), rows=frames, medium="video", pooled=True)
        return [video] * (call.rows // frames)

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        if "pack" in call.arguments:
            return super().per_picture(call, values, pictures)
        pooled = self.core.apply_pooling(self.tower_tokens(values).unsqueeze(-1))
        return [video.flatten() for video in pooled.split([picture.rows for picture in pictures])]
