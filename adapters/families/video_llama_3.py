"""VideoLLaMA 3: a packed SigLIP, a patch a token in images and 2x2 in videos, whose repeated tokens never reach a prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.uploading import uploaded


class VideoLlama3(PackedRaster):
    model_types = ("video_llama_3",)
    remarks = (
        "dynamic resolution; tokens of a video that the processor leaves out have no column, and no method meets them"
    )

    def noted_calls(self) -> list[NotedCall]:
        return [NotedCall(self.core, "get_video_features", lambda arguments: {"videos": True}, ahead=True)]

    def units(self, call: TowerCall) -> list[int]:
        """Patches along a side of a token, of each picture; its rows come square by square."""
        return call.arguments["merge_sizes"].tolist()

    def pictures(self, call: TowerCall) -> list[Picture]:
        videos, found, first = "videos" in call.arguments, [], 0
        left = call.asked.get("video_compression_mask") if videos else None
        for (t, h, w), unit in zip(self.grids(call), self.units(call)):
            layout = Layout(h // unit, w // unit, frames=t)
            n = layout.num_tokens
            if left is not None and not left[first : first + n].all():
                cells = left[first : first + n].nonzero().flatten().tolist()
                layout = Layout(layout.height, layout.width, t, tuple(cells))
            first += n
            medium: Any = "video" if videos else "image"
            found.append(Picture(layout, layout.num_tokens, rows=0, medium=medium, pooled=unit > 1))
        return found

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        rows = zip(values.split(self.patch_counts(call)), self.units(call))
        return self.placed(call, torch.cat([own.view(-1, unit**2).mean(dim=1) for own, unit in rows]), pictures)

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        counts = [n // unit**2 for n, unit in zip(self.patch_counts(call), self.units(call))]
        held = [uploaded(picture.layout.patches, values.device) for picture in pictures]
        return [own[cells] for own, cells in zip(values.split(counts), held)]

    def projection(self) -> Projection:
        way = self.core.projector.readout
        return Projection(way, way, way, tuple(way))
