"""SmolVLM and Idefics3: square tiles between markers of text, pixel shuffle joins patches; each tile is an image."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts


class SmolVLM(Family):
    model_types = ("idefics3", "smolvlm")
    remarks = "every tile, and every frame of a video, is an image of its own"

    @property
    def grid(self) -> int:
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    def facts(self) -> ModelFacts:
        depth, layout = len(self.layers()), self.view()
        return ModelFacts(
            family=self.model.config.model_type,
            tower_depth=depth,
            feature_block=depth - 1,
            has_cls=False,
            tower_grid=(self.grid, self.grid),
            patches_per_token=self.model.config.scale_factor**2,
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=layout.num_tokens,
            stages=("projector", "llm", "cache"),
        )

    def view(self) -> Layout:
        side = self.grid // self.model.config.scale_factor
        return Layout(side, side)

    def pictures(self, call: TowerCall) -> list[Picture]:
        layout = self.view()
        return [Picture(layout, layout.num_tokens, pooled=True)] * call.rows

    def projection(self) -> Projection:
        projection = self.core.connector.modality_projection
        return Projection(projection, projection, projection)

    def tower_tokens(self, values: Tensor) -> Tensor:
        connector = self.core.connector
        return connector.pixel_shuffle(values.unsqueeze(-1), connector.scale_factor).mean(dim=-1)
