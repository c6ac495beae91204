"""Ernie 4.5 VL: a packed tower, two frames of a video a step of time behind it, experts of text and of pictures."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

from .common import END, IMAGE, NEWLINE, START, VIDEO, Case, Draw, Piece, text
from .qwen import Qwen2VL, rope


class Ernie4_5VL(Qwen2VL, key="ernie4_5_vl_moe"):
    """Grids in patches; two frames of a video are one step of time. What a token is picks the experts it passes."""

    model: Any = Ernie4_5_VLMoeForConditionalGeneration
    brief = True
    film_shape: Any = (4, 6, 4)

    def config(self, **variant: Any) -> Any:
        experts: dict[str, Any] = {"moe_intermediate_size": [16, 12], "moe_k": 2, "moe_num_experts": 4}
        experts |= {"moe_num_shared_experts": 1, "mlp_layer_types": ["dense"] + ["sparse"] * 4}
        words = text("ernie4_5_vl_moe_text", **experts, **rope(1, 1, 2))
        tower = {"depth": 4, "hidden_size": 24, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
        own = {"vision_config": {**tower, "intermediate_size": 40}, "text_config": words, "tie_word_embeddings": False}
        ids = {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_start_token_id": START,
            "image_end_token_id": END,
        }
        ids |= {"video_start_token_id": NEWLINE, "video_end_token_id": NEWLINE + 1}
        return Ernie4_5_VLMoeConfig(**{**own, **ids, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [IMAGE] * (shape[0] * shape[1] // 4) + [END]
        return Piece("image", tokens, IMAGE, patches(draw, (1, *shape), "pixel_values", "image_grid_thw"))

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens = [NEWLINE] + [VIDEO] * (shape[0] // 2 * shape[1] * shape[2] // 4) + [NEWLINE + 1]
        return Piece("video", tokens, VIDEO, patches(draw, shape, "pixel_values_videos", "video_grid_thw"))

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        ids = case.inputs["input_ids"]
        seen = torch.tensor([IMAGE, VIDEO, START, END, NEWLINE, NEWLINE + 1])
        return {**super().collate(samples, case, config), "moe_mm_token_type_ids": torch.isin(ids, seen).int()}


def patches(draw: Draw, grid: tuple[int, int, int], pixels: str, name: str) -> dict:
    """Flattened patches (T * H * W, 3 * 4 * 4) and the grid (1, 3)."""
    return {pixels: draw.pixels(grid[0] * grid[1] * grid[2], 3 * 4 * 4), name: torch.tensor([grid])}
