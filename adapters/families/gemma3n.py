"""Gemma 3n: a convolutional tower, several states of every token in the decoder, keys that later layers reuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class Gemma3n(Family):
    model_types = ("gemma3n",)
    remarks = "a convolutional tower; tokens leave in front of the layers that reuse keys"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.side = int(model.config.vision_soft_tokens_per_image**0.5)

    def layers(self, tower: int = 0) -> Any:
        return []

    def facts(self) -> ModelFacts:
        return replace(super().facts(), tokens_per_image=self.side**2)

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [Picture(Layout(self.side, self.side), self.side**2)] * call.rows

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.embed_vision]

    def projection(self) -> Projection:
        projector = self.core.embed_vision

        def run(rows: Tensor) -> Tensor:
            return projector(inputs_embeds=rows)

        return Projection(projector, projector.soft_embedding_norm, run)
