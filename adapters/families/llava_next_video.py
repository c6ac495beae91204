"""LLaVA-NeXT-Video: images as LLaVA-NeXT; the patches of a frame are pooled before the projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.families.any_resolution import AnyresTower
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout


class LlavaNextVideo(AnyresTower):
    model_types = ("llava_next_video",)
    remarks = "tiles are views; frames pooled"
    streams_as = "video"

    def videos(self, call: TowerCall) -> list[Picture]:
        frames, side = call.arguments["frames"], self.grid // self.model.config.spatial_pool_stride
        layout = Layout(side, side, frames=frames)
        return [Picture(layout, layout.num_tokens, rows=frames, medium="video", pooled=True)] * (call.rows // frames)

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        if "pack" in call.arguments:
            return super().per_picture(call, values, pictures, block)
        stride = self.model.config.spatial_pool_stride
        pooled = F.avg_pool2d(self.tower_tokens(values).unflatten(1, (self.grid, self.grid)), stride)
        return self.placed(call, pooled.flatten(1), pictures)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        if "pack" in call.arguments:
            return super().projected_per_picture(call, rows, pictures)
        return [own.flatten(0, 1) for own in rows.split([picture.rows for picture in pictures])]
