"""Gemma 3, and ShieldGemma 2 around it: SigLIP, average pooling to a fixed number of tokens, which attend both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.base import runs
from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Projection


class Gemma3(TileGrid):
    model_types = ("gemma3", "shieldgemma2")
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    units_enter = True
    remarks = "image tokens attend both ways; crops of pan and scan are images of their own"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.core = self.core.base_model  # ShieldGemma 2 is a classifier around the language model with its head

    @property
    def unit(self) -> int:
        return self.grid[0] // int(self.model.config.mm_tokens_per_image**0.5)

    def projection(self) -> Projection:
        projector = self.core.multi_modal_projector

        def run(rows: Tensor) -> Tensor:
            return (projector.mm_soft_emb_norm(rows) @ projector.mm_input_projection_weight).type_as(rows)

        return Projection(projector, projector.mm_soft_emb_norm, run)

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        kinds = arguments.get("token_type_ids")
        if kinds is None:
            return None
        return runs(kinds[:, -embeds.shape[1] :].to(embeds.device) == 1)
