"""Granite 4 Vision: any-resolution tiles through windowed Q-Formers; all that is visual joins in front of chosen layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.families.any_resolution import AnyresTower
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.model_facts import ModelFacts


class Granite4Vision(AnyresTower):
    """``grid`` tokens along a side of a tile; each query starts from the mean of a square of patches, and has its scores."""

    model_types = ("granite4_vision",)
    remarks = "tiles are views; row newlines stay; features join in front of several layers, methods see the first"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        self.patches = self.grid
        self.grid = int(self.patches * Fraction(config.downsample_rate))
        self.cut = self.tower_prefix  # a Q-Former takes all patches and nothing else
        states = [*(tower for tower, _ in config.deepstack_layer_map), config.spatial_vision_layer]
        #: hidden state i is the output of block i - 1
        self.feature_block = max(i % (config.vision_config.num_hidden_layers + 1) for i in states) - 1

    def facts(self) -> ModelFacts:
        return replace(
            super().facts(),
            tower_grid=(self.patches, self.patches),
            patches_per_token=(self.patches // self.grid) ** 2,
            interpolated="all pictures",
            stages=("projector", "llm", "cache"),
        )

    def _picture(self, packed: Tensor, views: int) -> Picture:
        return replace(super()._picture(packed, views), pooled=True)

    def tower_tokens(self, values: Tensor) -> Tensor:
        patches = super().tower_tokens(values).unflatten(1, (1, self.patches, self.patches))
        return F.avg_pool2d(patches, self.patches // self.grid).flatten(1)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return [None] * len(pictures)

    @property
    def projectors(self) -> list[nn.Module]:
        used = len(self.model.config.spatial_target_layers)
        return [*self.core.layerwise_projectors, *self.core.spatial_projectors[:used]]

    def projection(self) -> Projection:
        last = self.core.layerwise_projectors[0].out_linear
        return Projection(last, last, last)
