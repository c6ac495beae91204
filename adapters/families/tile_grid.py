"""Towers that make one grid of tokens of every tile, whatever is in it; each tile is an image of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.families.grid_units import patches_of_tokens, pixels_of_tokens
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.model_facts import ModelFacts


class TileGrid(Family):
    """What they share: ``grid`` patches, of which squares of ``unit`` x ``unit`` are joined in a token."""

    pointwise = True  #: whether a token is made of its own row in front of the projector, and of no other
    units_enter = False  #: whether the tower can run a part of the tokens of a tile
    heard = True  #: whether the blocks of the tower have attention that can be listened to

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a tile, down and across."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return side, side

    @property
    def feature_block(self) -> int:
        """The block of the tower (0-based) whose output is projected."""
        layer = getattr(self.model.config, "vision_feature_layer", -1)  # hidden state i is the output of block i - 1
        return layer - 1 if layer >= 0 else len(self.layers()) + layer

    @property
    def pixel_unit(self) -> PixelUnit | None:
        if not self.units_enter:
            return None
        size = self.model.config.vision_config.patch_size
        side = self.unit * (size if isinstance(size, int) else size[0])
        return PixelUnit(1, 3, 1, side, side)

    def unit_pixels(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[Tensor]:
        assert self.pixel_unit is not None, "asked where the stage is offered"
        return pixels_of_tokens(pixels, self.pixel_unit.height, lambda x: self.placed(call, x, pictures))

    def unit_rows(self, call: TowerCall, pictures: list[Picture]) -> list[Tensor]:
        device = next(self.towers[call.tower].parameters()).device
        return patches_of_tokens(call.rows, self.grid, self.unit, lambda x: self.placed(call, x, pictures), device)

    def view(self) -> Layout:
        """Layout of the tokens of a tile."""
        height, width = self.grid
        return Layout(height // self.unit, width // self.unit)

    def facts(self) -> ModelFacts:
        depth = len(self.layers()) if self.heard else 0
        return ModelFacts(
            family=self.model.config.model_type,
            tower_depth=depth,
            feature_block=self.feature_block if depth else -1,
            has_cls=self.tower_prefix > 0,
            tower_prefix=self.tower_prefix,
            tower_grid=(self.grid[0] // self.unit, self.grid[1] // self.unit) if depth else None,
            patches_per_token=self.unit**2,
            interpolated="" if self.pointwise else "all pictures",
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=None if self.tiled else self.view().num_tokens,
            # merged patches have no place among features from elsewhere
            stages=(
                *(("encoder",) if depth and self.pointwise else ()),
                "projector",
                "llm",
                "cache",
            ),
        )

    def pictures(self, call: TowerCall) -> list[Picture]:
        layout = self.view()
        return [Picture(layout, layout.num_tokens, pooled=self.unit > 1)] * call.rows

    def tower_tokens(self, values: Tensor) -> Tensor:
        return self.pooled(values, self.unit)

    def pooled(self, values: Tensor, unit: int) -> Tensor:
        """Mean of ``values`` (M, rows) over squares of ``unit`` x ``unit`` patches."""
        patches = values[:, self.tower_prefix :].unflatten(1, (1, *self.grid))
        return F.avg_pool2d(patches, unit).flatten(1)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        return super().projected_per_picture(call, rows, pictures) if self.pointwise else [None] * len(pictures)
