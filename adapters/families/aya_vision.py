"""Aya Vision: a SigLIP tower, pixel shuffle in the projector, tiles between markers of text."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.upstream.decoder import layer_type
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout
from tokenreduce.method import ModelFacts


class AyaVision(Family):
    model_types = ("aya_vision",)
    remarks = "every tile is an image of its own"

    @property
    def grid(self) -> int:
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    def view(self) -> Layout:
        side = self.grid // self.model.config.downsample_factor
        return Layout(side, side)

    def facts(self) -> ModelFacts:
        depth, layer = len(self.layers()), self.model.config.vision_feature_layer
        return ModelFacts(
            family="aya_vision",
            tower_depth=depth,
            feature_block=layer - 1 if layer >= 0 else depth + layer,
            has_cls=False,
            tower_grid=(self.grid, self.grid),
            patches_per_token=self.model.config.downsample_factor**2,
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=self.view().num_tokens,
            stages=("projector", "llm", "cache"),
        )

    def pictures(self, call: TowerCall) -> list[Picture]:
        layout = self.view()
        return [Picture(layout, layout.num_tokens, pooled=True)] * call.rows

    def projection(self) -> Projection:
        projector, factor = self.core.multi_modal_projector, self.model.config.downsample_factor

        def run(rows: Tensor) -> Tensor:
            """Each row as an image of its own, of as many patches as it consists of."""
            return projector(rows.reshape(-1, factor**2, rows.shape[-1] // factor**2)).view(*rows.shape[:-1], -1)

        return Projection(projector, projector.layernorm, run)

    def projected_cells(self, rows: Tensor) -> Tensor:
        return rows.flatten(1, 2)

    def tower_tokens(self, values: Tensor) -> Tensor:
        return self.core.multi_modal_projector.pixel_shuffle(values.unsqueeze(-1)).mean(dim=-1).flatten(1)

    def rotates(self, layer: int) -> bool:
        return layer_type(self.decoder.config, layer) == "sliding_attention"
