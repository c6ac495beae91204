"""LLaVA-1.5: a CLIP or SigLIP tower, a pointwise projector, one run of placeholder tokens per image."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.families.grid_units import patches_of_tokens, pixels_of_tokens
from tokenreduce.adapters.upstream.model import feature_layer
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, Projection, TowerCall
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.model_facts import ModelFacts

HALF = (0.5, 0.5, 0.5)
TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # rows before the first patch


class ClipTower(Family):
    """What families with a CLIP or SigLIP tower and a pointwise projector share."""

    units_enter = False  #: whether the tower can run a part of the tokens of an image

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        vision = config.vision_config
        if vision.model_type not in TOWERS:
            raise ValueError(
                f"vision tower {vision.model_type!r} of this {config.model_type} model is not supported; allowed: "
                f"{', '.join(TOWERS)}. A tower whose number of tokens follows the image size needs a family file of its own."
            )
        self.grid = vision.image_size // vision.patch_size
        #: rows that the model itself cuts off before the projector
        self.cut = 1 if getattr(config, "vision_feature_select_strategy", "default") == "default" else 0
        depth = vision.num_hidden_layers
        layer = feature_layer(config)
        layers = layer if isinstance(layer, (list, tuple)) else [layer]
        #: hidden state i is the output of block i - 1
        self.feature_block = max(i if i >= 0 else depth + 1 + i for i in layers) - 1

        if vision.model_type == "siglip_vision_model":
            self.pixel_mean = self.pixel_std = HALF  # type: ignore[misc]

    @property
    def pixel_unit(self) -> PixelUnit | None:
        side = self.model.config.vision_config.patch_size
        return PixelUnit(1, 3, 1, side, side) if self.units_enter else None

    def unit_pixels(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[Tensor]:
        side = self.model.config.vision_config.patch_size
        return pixels_of_tokens(pixels, side, lambda x: self.placed(call, x, pictures))

    def unit_rows(self, call: TowerCall, pictures: list[Picture]) -> list[Tensor]:
        device, grid = next(self.towers[call.tower].parameters()).device, (self.grid, self.grid)
        return patches_of_tokens(call.rows, grid, 1, lambda x: self.placed(call, x, pictures), device)

    @property
    def tower_prefix(self) -> int:
        return TOWERS[self.model.config.vision_config.model_type]

    @property
    def cells(self) -> list[int]:
        """Grid cell of every row the model hands on; negative for a forwarded [CLS]."""
        return [row - self.tower_prefix for row in range(self.cut, self.tower_prefix + self.grid**2)]

    @property
    def tokens_per_image(self) -> int | None:
        return sum(cell >= 0 for cell in self.cells)

    def facts(self) -> ModelFacts:
        vision = self.model.config.vision_config
        return ModelFacts(
            family=self.model.config.model_type,
            tower_depth=vision.num_hidden_layers,
            feature_block=self.feature_block,
            has_cls=self.tower_prefix > 0,
            tower_prefix=self.tower_prefix,
            tower_grid=(self.grid, self.grid),
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=self.tokens_per_image,
            # a tower without [CLS] whose first patch the model cuts off would lose a merged token's anchor
            stages=(*(("encoder",) if self.cut <= self.tower_prefix else ()), "projector", "llm", "cache"),
        )

    def projection(self) -> Projection:
        projector = self.core.multi_modal_projector
        return Projection.through(projector, projector.linear_1, projector.act, projector.linear_2)

    def projected_cells(self, rows: Tensor) -> Tensor:
        cut = self.tower_prefix + self.grid**2 - rows.shape[1]
        return F.pad(rows, (0, 0, cut, 0))[:, self.tower_prefix :]

    def view(self) -> Layout:
        """Layout of what the model hands on of one pass of the tower."""
        cells = tuple(cell for cell in self.cells if cell >= 0)
        return Layout(self.grid, self.grid, cells=None if len(cells) == self.grid**2 else cells)


class Llava(ClipTower):
    model_types = ("llava",)
    units_enter = True
    remarks = "CLIP or SigLIP tower; Llama, Mistral or Qwen2 language model"
    streams_as = "image"

    def pictures(self, call: TowerCall) -> list[Picture]:
        return [self.picture()] * call.rows

    def picture(self) -> Picture:
        patches = tuple(i for i, cell in enumerate(self.cells) if cell >= 0)
        return Picture(self.view(), len(self.cells), None if len(patches) == len(self.cells) else patches)

    def only_picture(self) -> Picture:
        return self.picture()


def frames_of_videos(core: Any) -> list[NotedCall]:
    """The call that tells how many frames the videos have that the tower is about to see."""
    return [NotedCall(core, "get_video_features", _frames, ahead=True)] if hasattr(core, "get_video_features") else []


def _frames(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"frames": next(iter(arguments.values())).shape[1]}
