"""InternVL3 in vLLM: the tiles of an image are reduced together, the frames of a video each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration

from tokenreduce.adapters.hooks.visual_token_positions import tiled
from tokenreduce.adapters.serving.vllm.model import ReducingModel
from tokenreduce.adapters.serving.vllm.processing import reducing
from tokenreduce.adapters.serving.vllm.settings import Settings
from tokenreduce.adapters.visual_inputs import Picture, TowerCall

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def pictures_of(settings: Settings, modality: str, made: Mapping[str, Any]) -> list[Picture]:
    rows = int(made[f"{modality}_num_patches"])
    tiles = settings.family.pictures(TowerCall(0, rows, {}))
    if modality == "video" or rows == 1:
        return tiles
    whole = tiled([tile.layout for tile in tiles])
    return [replace(tiles[0], layout=whole, columns=sum(tile.columns for tile in tiles), rows=rows)]


@reducing(pictures_of)
class InternVL(ReducingModel, InternS1ForConditionalGeneration):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        chosen = config.vision_feature_layer, config.vision_feature_select_strategy
        if chosen != (-1, "default"):
            raise ValueError(
                f"(vision_feature_layer, vision_feature_select_strategy) of this model are {chosen}; allowed in vLLM, which "
                "reads neither: (-1, 'default'). Serve it with transformers (docs/serving.md)"
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def listened(self) -> tuple[list[nn.Module], list[nn.Module], nn.Module, Any]:
        blocks = [layer.attention for layer in self.vision_tower.encoder.layer]
        projector = self.multi_modal_projector
        return [b.attn for b in blocks], [b.k_proj for b in blocks], projector, projector

    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[list[Picture]]]:
        pixels, name = given[PIXELS[modality]], f"{modality}_num_patches"
        call = TowerCall(0, len(pixels), {}, tuple(pixels.shape))
        return call, pixels, [pictures_of(self.settings, modality, {name: n}) for n in given[name]]
