"""GLM-4V, dense and mixture, GLM-4.6V, GLM-OCR: packed towers, 2 x 2 convolutions, frames of a video as images."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
)

from .common import CLOCK, END, GLOBAL, IMAGE, NEWLINE, START, VIDEO, Case, Draw, Piece, text
from .qwen import TOWER, Qwen2VL, rope, seen

FILM, CUT = GLOBAL, NEWLINE  # around the frames of a video
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": FILM,
    "video_end_token_id": CUT,
}


class Glm4v(Qwen2VL, key="glm4v"):
    """Frames of a video hold placeholders of images, between time stamps; only token types tell what is of a video."""

    brief = True
    apart = "placeholders of both have one id, and such a model counts all of them against the features of each"
    model: Any = Glm4vForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        return self.own(Glm4vConfig, text("glm4v_text", **self.rope()), variant)

    def own(self, kind: Any, words: dict, variant: dict, **tower: Any) -> Any:
        tower = {**TOWER, "depth": 2, "image_size": 16, "attention_bias": False, **tower}
        return kind(**{"vision_config": tower, "text_config": words, **IDS, "tie_word_embeddings": False, **variant})

    def rope(self) -> dict:
        return rope(1, 1, 2, partial_rotary_factor=1.0)

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens = [FILM]
        for _ in range(shape[0]):
            tokens += [START] + [IMAGE] * (shape[1] * shape[2] // 4) + [END, CLOCK, *draw.words(1)]
        return Piece("video", [*tokens, CUT], IMAGE, seen(draw, shape, "pixel_values_videos", "video_grid_thw"))

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        ids = case.inputs["input_ids"]
        filmed = (ids == FILM).cumsum(dim=1) > (ids == CUT).cumsum(dim=1)
        kinds = {"mm_token_type_ids": torch.where(ids == IMAGE, 1 + filmed.long(), 0)}
        return {**super().collate(samples, case, config), **kinds}


class Glm4vMoe(Glm4v, key="glm4v_moe"):
    """As GLM-4V; behind the first layer a token passes two of four experts, and one that all tokens share."""

    model: Any = Glm4vMoeForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        experts: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
        experts |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1}
        return self.own(Glm4vMoeConfig, text("glm4v_moe_text", **experts, **self.rope()), variant)


class Glm46V(Glm4v, key="glm46v"):
    """The parts of GLM-4V under another configuration."""

    model: Any = Glm46VForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        return self.own(Glm46VConfig, text("glm4v_text", **self.rope()), variant, model_type="glm4v_vision")


class GlmOcr(Glm4v, key="glm_ocr"):
    """Queries and keys of the tower are normed; no learned positions."""

    model: Any = GlmOcrForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        return self.own(GlmOcrConfig, text("glm_ocr_text", **self.rope()), variant)
