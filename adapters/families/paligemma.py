"""PaliGemma: a SigLIP tower without pooling, images first, a prompt whose tokens attend to each other both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.upstream.cache import given_cache
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts
from tokenreduce.tokens import STAGES


class PaliGemma(Family):
    model_types = ("paligemma",)
    remarks = "PaliGemma 1 and 2; the prompt attends both ways"
    windowed = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.grid = vision.image_size // vision.patch_size

    def facts(self) -> ModelFacts:
        depth = len(self.layers())
        return ModelFacts(
            family="paligemma",
            tower_depth=depth,
            feature_block=depth - 1,
            has_cls=False,
            tower_grid=(self.grid, self.grid),
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=self.grid**2,
            stages=STAGES,
        )

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [Picture(Layout(self.grid, self.grid), self.grid**2)] * call.rows

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        kinds, cache = arguments.get("token_type_ids"), given_cache(arguments)
        if kinds is None or (cache is not None and cache.is_initialized and arguments.get("pixel_values") is None):
            return None  # what follows a prompt is causal
        return torch.where(kinds[:, -embeds.shape[1] :].to(embeds.device) == 0, 0, -1)
