"""Video-LLaVA: one tower for images, another for videos; every frame brings its [CLS] along, which always stays."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.families.llava import ClipTower, frames_of_videos
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, TowerCall
from tokenreduce.layout import Layout


class VideoLlava(ClipTower):
    model_types = ("video_llava",)
    remarks = "two CLIP towers; the [CLS] of a frame stays"
    streams_as = "video"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.towers = [self.core.image_tower, self.core.video_tower]

    def noted_calls(self) -> list[NotedCall]:
        return frames_of_videos(self.core)

    def pictures(self, call: TowerCall) -> list[Picture]:
        if call.tower == 0:
            held = tuple(i for i, cell in enumerate(self.cells) if cell >= 0)
            return [Picture(self.view(), len(self.cells), held)] * call.rows
        frames, area = call.arguments["frames"], self.grid**2
        whole = area + self.tower_prefix
        held = tuple(t * whole + self.tower_prefix + cell for t in range(frames) for cell in range(area))
        layout = Layout(self.grid, self.grid, frames=frames)
        return [Picture(layout, frames * whole, held, rows=frames, medium="video")] * (call.rows // frames)
