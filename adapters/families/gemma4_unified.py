"""Gemma 4 without a tower: linear layers make a token of every patch of 48 x 48 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.families.gemma4 import Gemma4
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall


class Gemma4Unified(Gemma4):
    model_types = ("gemma4_unified",)
    remarks = "no tower; pictures attend both ways"
    two_way_layers = None
    windowed = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.towers = [self.core.embed_vision]

    @property
    def unit(self) -> int:
        return 1

    def layers(self, tower: int = 0) -> Any:
        return []

    def places(self, call: TowerCall) -> Tensor:
        return call.arguments["image_position_ids"]

    @property
    def opaque(self) -> list[nn.Module]:
        return []

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.embed_vision.multimodal_embedder]

    def projection(self) -> Projection:
        projector = self.core.embed_vision.multimodal_embedder
        return Projection(projector, projector, projector)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return Family.projected_per_picture(self, call, rows, pictures)
