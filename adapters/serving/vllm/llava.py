"""LLaVA-1.5 in vLLM: as many tokens for every image; what is left is counted anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from vllm.model_executor.models.llava import LlavaForConditionalGeneration

from tokenreduce.adapters.serving.vllm.model import ReducingModel
from tokenreduce.adapters.serving.vllm.processing import reducing
from tokenreduce.adapters.serving.vllm.settings import Settings
from tokenreduce.adapters.visual_inputs import Picture, TowerCall


def pictures_of(settings: Settings, modality: str, made: Mapping[str, Any]) -> list[Picture]:
    return [settings.family.only_picture()]


class ClipTowerModel(ReducingModel):
    """What LLaVA's line shares: a tower of CLIP or SigLIP, and a projector of two layers."""

    vision_tower: Any
    multi_modal_projector: Any

    def listened(self) -> tuple[list[nn.Module], list[nn.Module], nn.Module, Any]:
        blocks = [layer.self_attn for layer in self.vision_tower.vision_model.encoder.layers]
        projector = self.multi_modal_projector
        return [b.attn for b in blocks], [b.qkv_proj for b in blocks], projector, projector


@reducing(pictures_of)
class Llava(ClipTowerModel, LlavaForConditionalGeneration):
    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[list[Picture]]]:
        pixels = given["pixel_values"]
        call = TowerCall(0, len(pixels), {}, tuple(pixels.shape))
        return call, pixels, [[picture] for picture in self.settings.family.pictures(call)]
