"""Gemma 3: a SigLIP tower, average pooling to a fixed number of tokens, image tokens that attend to each other both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.base import Family, runs
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts


class Gemma3(Family):
    model_types = ("gemma3",)
    remarks = "image tokens attend both ways; crops of pan and scan are images of their own"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        vision = model.config.vision_config
        self.grid = vision.image_size // vision.patch_size
        self.side = int(model.config.mm_tokens_per_image**0.5)

    def facts(self) -> ModelFacts:
        depth = len(self.layers())
        return ModelFacts(
            family="gemma3",
            tower_depth=depth,
            feature_block=depth - 1,
            has_cls=False,
            tower_grid=(self.grid, self.grid),
            patches_per_token=(self.grid // self.side) ** 2,
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=self.side**2,
            stages=("projector", "llm", "cache"),
        )

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [Picture(Layout(self.side, self.side), self.side**2, pooled=True)] * call.rows

    def tower_tokens(self, values: Tensor) -> Tensor:
        patches = values.unflatten(1, (1, self.grid, self.grid))
        return self.core.multi_modal_projector.avg_pool(patches).flatten(1)

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
