"""Florence-2: a DaViT, whose cells a BART encoder reads in front of the text; the first token is the mean of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class Florence2(Family):
    model_types = ("florence2",)
    remarks = "a text encoder reads picture and text; the token of the whole picture stays; no block of its tower to listen to"
    pictures_join = "text_encoder"

    def __init__(self, model: Any) -> None:
        self.model, self.core = model, model.base_model
        self.decoder = self.core.language_model.decoder
        self.towers = [self.core.vision_tower]

    @property
    def text_encoder(self) -> Any:
        return self.core.language_model.encoder

    @property
    def projectors(self) -> list[Any]:
        return [self.core.multi_modal_projector]

    def layers(self, tower: int = 0) -> Any:
        return []

    def facts(self) -> ModelFacts:
        return replace(super().facts(), stages=("projector",))

    def pictures(self, call: TowerCall) -> list[Picture]:
        height, width = call.shape[-2:]
        for stride in self.model.config.vision_config.patch_stride:
            height, width = -(-height // stride), -(-width // stride)
        columns = 1 + height * width
        return [Picture(Layout(height, width), columns, tuple(range(1, columns)), pooled=True)] * call.rows

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return [None] * len(pictures)  # the projector adds positions of the whole grid
