"""Qwen2-VL, Qwen2.5-VL and what Qwen3-VL shares, in vLLM: pictures of any size, videos; survivors keep ids of three axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration

from tokenreduce.adapters.serving.vllm.model import ReducingModel
from tokenreduce.adapters.serving.vllm.positions import grid_ids, laid_out, settled, with_ids
from tokenreduce.adapters.serving.vllm.processing import reducing
from tokenreduce.adapters.serving.vllm.settings import Settings
from tokenreduce.adapters.upstream.vllm import places_from_model
from tokenreduce.adapters.visual_inputs import Picture, TowerCall

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def pictures_of(settings: Settings, modality: str, grids: Tensor) -> tuple[TowerCall, list[Picture]]:
    """Of grids (M, 3) of patches."""
    call = TowerCall(0, 0, {"grid_thw": grids})
    found = settings.family.pictures(call)
    return call, [replace(p, layout=replace(p.layout, medium=modality)) for p in found]


def picture_of(settings: Settings, modality: str, made: Mapping[str, Any]) -> list[Picture]:
    return pictures_of(settings, modality, made[f"{modality}_grid_thw"][None])[1]


class QwenVL(ReducingModel):
    supports_multimodal_pruning = True
    visual: Any
    config: Any
    iter_mm_grid_thw: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        places_from_model(vllm_config)

    def listened(self) -> tuple[list[nn.Module], list[nn.Module], nn.Module, Any]:
        blocks, layers = [block.attn for block in self.visual.blocks], self.merging()
        return [b.attn for b in blocks], [b.qkv for b in blocks], layers[0], lambda rows: projected(layers, rows)

    def merging(self) -> list[Any]:
        """The layers through which a unit's rows become a token, one after the other."""
        return list(self.visual.merger.mlp)

    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[list[Picture]]]:
        pixels = given[PIXELS[modality]]
        call, pictures = pictures_of(self.settings, modality, given[f"{modality}_grid_thw"])
        return replace(call, shape=tuple(pixels.shape)), pixels, [[picture] for picture in pictures]

    def ids_of(self, picture: Picture, modality: str, given: Mapping[str, Any], i: int) -> Tensor:
        """(3, columns) ids of item ``i``, counted from its first."""
        seconds = given.get("second_per_grid_ts") if modality == "video" else None
        step = 1.0 if seconds is None else float(seconds[i]) * self.config.vision_config.tokens_per_second
        return grid_ids(picture.layout.frames, picture.layout.height, picture.layout.width, step)

    def placed(
        self, rows: Tensor, columns: Tensor, picture: Picture, modality: str, given: Mapping[str, Any], i: int
    ) -> Tensor:
        ids = self.ids_of(picture, modality, given, i).to(columns.device, non_blocking=True)
        return with_ids(rows, ids[:, columns])

    def ids_in(self, features: list[Any]) -> Iterator[Tensor]:
        """``ids_of`` the items of a prompt, whose features vLLM gives in its order."""
        for _, *grid in self.iter_mm_grid_thw(features):
            yield grid_ids(*grid)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        places = [(feature.mm_position.offset, feature.mm_position.length) for feature in features]
        pictures = [(*place, ids) for place, ids in zip(places, self.ids_in(features), strict=True)]
        positions = laid_out(len(input_tokens), pictures)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """``settled``, for the runner."""
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        media = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        rows, positions = settled(mrope_positions, media, num_computed_tokens, multimodal_embeddings)
        return rows, positions, int(torch.maximum(positions, mrope_positions).max()) + 1 - len(ids)


def projected(layers: Any, rows: Tensor) -> Tensor:
    """``rows`` through modules of vLLM's, which answer with a pair where they are linear."""
    for layer in layers:
        out = layer(rows)
        rows = out[0] if isinstance(out, tuple) else out
    return rows


@reducing(picture_of)
class Qwen2VL(QwenVL, Qwen2VLForConditionalGeneration):
    pass


@reducing(picture_of)
class Qwen2_5VL(QwenVL, Qwen2_5_VLForConditionalGeneration):
    pass
