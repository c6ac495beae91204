"""Kimi K2.5: a packed tower whose videos are averaged over time behind it; latent attention and a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

from .common import END, IMAGE, START, VIDEO, Case, Draw, Piece, text
from .qwen import IDS, Qwen2VL


class KimiK25(Qwen2VL, key="kimi_k25"):
    """Grids in patches (rows, columns); a video is (frames, rows, columns), averaged over its frames. Latent attention."""

    model: Any = Kimi_K25ForConditionalGeneration
    brief = True
    words: dict[str, Any] = {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "qk_nope_head_dim": 8,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    }

    def config(self, **variant: Any) -> Any:
        tower = {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": 4, "num_attention_heads": 2}
        tower |= {"num_hidden_layers": 4, "hidden_size": 24, "intermediate_size": 40}
        words = text("deepseek_v3", **{**self.words, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
        del words["head_dim"]
        own = {"vision_config": tower, "text_config": words, "projection_hidden_size": 24, "tie_word_embeddings": False}
        return Kimi_K25Config(**{**own, **IDS, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [IMAGE] * (shape[0] * shape[1] // 4) + [END]
        return Piece("image", tokens, IMAGE, squares(draw, (1, *shape), "pixel_values", "image_grid_thw"))

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens = [START] + [VIDEO] * (shape[1] * shape[2] // 4) + [END]
        return Piece("video", tokens, VIDEO, squares(draw, shape, "pixel_values_videos", "video_grid_thw"))

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        found = super().collate(samples, case, config)
        return {name: x for name, x in found.items() if name != "mm_token_type_ids"}


def squares(draw: Draw, grid: tuple[int, int, int], pixels: str, name: str) -> dict:
    """Patches (T * H * W, 3, 4, 4) and the grid (1, 3)."""
    return {pixels: draw.pixels(grid[0] * grid[1] * grid[2], 3, 4, 4), name: torch.tensor([grid])}
