"""Gemma 4: pictures of their own size, padded to one number of patches and pooled by position; keys that later layers reuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family, runs
from tokenreduce.adapters.visual_inputs import Medium, NotedCall, Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class Gemma4(Family):
    model_types: ClassVar[tuple[str, ...]] = ("gemma4",)
    remarks = "tokens leave in front of the layers that reuse keys; pictures of the mixture attend both ways"
    two_way_layers: ClassVar[tuple[str, ...] | None] = ("sliding_attention",)

    @property
    def unit(self) -> int:
        return self.model.config.vision_config.pooling_kernel_size

    def noted_calls(self) -> list[NotedCall]:
        return [NotedCall(self.core, "get_video_features", frames, ahead=True)]

    def places(self, call: TowerCall) -> Tensor:
        """(rows, patches, 2) long, column and row of each patch; -1 where there is none."""
        return call.arguments["pixel_position_ids"]

    def sides(self, call: TowerCall) -> list[tuple[int, int]]:
        """Tokens of each row of the tower, down and across."""
        most = self.places(call).amax(dim=1) + 1
        return [(down // self.unit, across // self.unit) for across, down in most.tolist()]

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        real = (self.places(call) >= 0).all(dim=-1)
        return [own[there][None] for own, there in zip(pixels, real)]

    def pictures(self, call: TowerCall) -> list[Picture]:
        films = call.arguments.get("frames")
        rows = films or [1] * call.rows
        firsts = [sum(rows[:i]) for i in range(len(rows))]
        sides = self.sides(call)
        layouts = [Layout(sides[i][0], sides[i][1], frames=n) for i, n in zip(firsts, rows)]
        medium: Medium = "image" if films is None else "video"
        return [Picture(own, own.num_tokens, rows=own.frames, medium=medium, pooled=self.unit > 1) for own in layouts]

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        own = []
        for value, place, (_, across) in zip(values, self.places(call), self.sides(call)):
            column, row = (place // self.unit).unbind(dim=-1)
            there = (place >= 0).all(dim=-1).nonzero()[:, 0]
            patches = there[(row * across + column)[there].argsort(stable=True)].to(value.device)
            own.append(value[patches].view(-1, self.unit**2).mean(dim=1))
        return joined(own, pictures)

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.embed_vision]

    def projection(self) -> Projection:
        projector = self.core.embed_vision
        return Projection(projector, projector.embedding_pre_projection_norm, projector)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return rows.split([picture.columns for picture in pictures])

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        kinds = arguments.get("mm_token_type_ids")
        if kinds is None or self.decoder.config.use_bidirectional_attention != "vision":
            return None
        kinds = kinds[:, -embeds.shape[1] :].to(embeds.device)
        return runs((kinds == 1) | (kinds == 2))


def frames(arguments: dict[str, Any]) -> dict[str, Any]:
    """How many frames each video has that the tower is about to see."""
    given = arguments.get("num_frames_per_video")
    if given is not None:
        return {"frames": given.tolist()}
    videos, each = arguments["pixel_values_videos"].shape[:2]  # until 5.23, an axis of their own
    return {"frames": [each] * videos}


def joined(rows: list[Tensor], pictures: list[Picture]) -> list[Tensor]:
    """The values of pictures, of which each takes so many ``rows`` of the tower."""
    own = iter(rows)
    return [torch.cat([next(own) for _ in range(picture.rows)]) for picture in pictures]
