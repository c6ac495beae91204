"""LLaVA-NeXT and LLaVA-OneVision in vLLM: images cut into tiles, of which each row ends with a newline, and pooled videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration

from tokenreduce.adapters.serving.vllm.llava import ClipTowerModel
from tokenreduce.adapters.serving.vllm.processing import reducing
from tokenreduce.adapters.serving.vllm.settings import Settings
from tokenreduce.adapters.visual_inputs import Picture, TowerCall

VIDEOS = "pixel_values_videos"


def images_cut(settings: Settings, sizes: Sequence[Any]) -> tuple[TowerCall, list[Picture]]:
    """The pass that images of ``sizes`` lead to, each (height, width), and how their tiles are laid out."""
    family: Any = settings.family
    asked = {"image_sizes": sizes, "vision_aspect_ratio": None, "vision_feature_select_strategy": None}
    packing = family.packing(asked)
    call = TowerCall(0, sum(packing["pack"]["views"]), packing)
    return call, family.pictures(call)


def videos_pooled(settings: Settings, frames: Sequence[int]) -> tuple[TowerCall, list[Picture]]:
    """The same of videos with so many ``frames``."""
    calls = [TowerCall(0, n, {"frames": n}) for n in frames]
    return TowerCall(0, sum(frames), {}), [p for call in calls for p in settings.family.pictures(call)]


def pictures_of(settings: Settings, modality: str, made: Mapping[str, Any]) -> list[Picture]:
    if modality == "video":
        return videos_pooled(settings, [len(made[VIDEOS])])[1]
    return images_cut(settings, made["image_sizes"][None])[1]


class AnyresModel(ClipTowerModel):
    def embed_multimodal(self, **given: Any) -> Any:
        """Without the tiles that only fill a batch up to the image with the most of them."""
        if "pixel_values" in given:
            views = [p.rows for p in images_cut(self.settings, given["image_sizes"])[1]]
            given["pixel_values"] = [tiles[:n] for tiles, n in zip(given["pixel_values"], views)]
        return super().embed_multimodal(**given)

    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[list[Picture]]]:
        rows = given[VIDEOS if modality == "video" else "pixel_values"]
        if modality == "video":
            call, pictures = videos_pooled(self.settings, [len(frames) for frames in rows])
        else:
            call, pictures = images_cut(self.settings, given["image_sizes"])
        return call, torch.cat(list(rows)), [[picture] for picture in pictures]


@reducing(pictures_of)
class LlavaNext(AnyresModel, LlavaNextForConditionalGeneration):
    pass


@reducing(pictures_of)
class LlavaOnevision(AnyresModel, LlavaOnevisionForConditionalGeneration):
    pass
