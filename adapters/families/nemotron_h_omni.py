"""Nemotron-H Omni: a packed C-RADIO with summary rows in front of each picture; decoder layers that are single mixers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import Medium, NotedCall, Picture, TowerCall
from tokenreduce.model_facts import ModelFacts


class NemotronHOmni(PackedRaster):
    model_types = ("nemotron_h_omni",)
    remarks = (
        "dynamic resolution; two frames are one step of time; recurrent layers read the shortened sequence; sounds stay"
    )
    decoder_layers = ("full_attention", "linear_attention", "moe", "mlp")

    @property
    def unit(self) -> int:
        return round(1 / self.model.config.downsample_ratio)

    @property
    def summaries(self) -> int:
        return self.towers[0].config.num_summary_tokens

    def facts(self) -> ModelFacts:
        return replace(super().facts(), stages=("projector", "llm"))

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].encoder.layer

    def rotates(self, layer: int) -> bool:
        return False

    def placeholder_ids(self) -> dict[Medium, int]:
        return {"image": self.model.config.image_token_id}  # of videos, too

    def noted_calls(self) -> list[NotedCall]:
        return [NotedCall(self.core, "get_video_features", videos, ahead=True)]

    def grids(self, call: TowerCall) -> list[tuple[int, int, int]]:
        if call.arguments.get("image_grid_hw") is not None:
            return [(1, h, w) for h, w in call.numbers("image_grid_hw")]
        films, side = call.arguments["videos"], self.towers[0].patch_size
        steps, _, height, width = call.shape
        return [(steps // films, height // side, width // side)] * films

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        if pixels.ndim == 2:
            return super().pieces(call, pixels)
        return [film[None] for film in pixels.split([t for t, _, _ in self.grids(call)])]

    def pictures(self, call: TowerCall) -> list[Picture]:
        rate = self.model.video_pruning_rate
        if rate > 0 and "videos" in call.arguments:
            raise ValueError(
                f"this nemotron_h_omni model prunes the tokens of videos by itself (video_pruning_rate={rate}), before any "
                "method meets them; set model.video_pruning_rate = 0, or give it pictures alone"
            )
        return [replace(picture, medium="image") for picture in super().pictures(call)]

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.multi_modal_projector]


def videos(arguments: dict[str, Any]) -> dict[str, Any]:
    """How many videos the tower is about to see, whose steps of time it takes in one batch."""
    pixels = arguments["pixel_values_videos"]
    return {"videos": len(pixels) if pixels.ndim == 5 else 1}
