"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and their mixtures: packed towers, 2 x 2 mergers, three-axis positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from .common import CLOCK, END, IMAGE, START, VIDEO, Case, Draw, Piece, TinyFamily, gather, text

PATCH = {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "depth": 4}
TOWER = {**PATCH, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 32}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def rope(*sections: int, **more: Any) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}}


class Qwen2VL(TinyFamily, key="qwen2_vl"):
    """Grids in patches (rows, columns); a video is (steps of two frames, rows, columns)."""

    model: Any = Qwen2VLForConditionalGeneration
    shapes = [(8, 8), (4, 12), (8, 6)]
    film_shape: Any = (3, 6, 4)

    def config(self, **variant: Any) -> Any:
        tower = {**PATCH, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}
        words = text("qwen2_vl_text", **rope(1, 1, 2))
        return Qwen2VLConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [IMAGE] * (shape[0] * shape[1] // 4) + [END]
        return Piece("image", tokens, IMAGE, seen(draw, (1, *shape), "pixel_values", "image_grid_thw"))

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens = [START] + [VIDEO] * (shape[0] * shape[1] * shape[2] // 4) + [END]
        return Piece("video", tokens, VIDEO, seen(draw, shape, "pixel_values_videos", "video_grid_thw"))

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        names = ["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"]
        ids = case.inputs["input_ids"]
        out = {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
        for name in names:
            out |= gather(samples, name)
        return out


class Qwen2_5VL(Qwen2VL, key="qwen2_5_vl"):
    """Windows of 2 x 2 merged cells in blocks 0 and 2, all of an image in the others; videos keep real time (8 ids a step)."""

    model: Any = Qwen2_5_VLForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        tower = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
        words = text("qwen2_5_vl_text", **rope(1, 1, 2))
        return Qwen2_5_VLConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        piece = super().film(config, shape, draw)
        piece.payload["second_per_grid_ts"] = torch.tensor([4.0])
        return piece


class Qwen3VL(Qwen2VL, key="qwen3_vl"):
    """Features of two more tower blocks join the first two decoder layers; time stamps stand between frames."""

    model: Any = Qwen3VLForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        tower = {**TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]}
        words = text("qwen3_vl_text", **rope(2, 1, 1, mrope_interleaved=True))
        return Qwen3VLConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens = [START]
        for _ in range(shape[0]):
            tokens += [CLOCK, *draw.words(1), START] + [VIDEO] * (shape[1] * shape[2] // 4) + [END]
        return Piece("video", [*tokens, END], VIDEO, seen(draw, shape, "pixel_values_videos", "video_grid_thw"))


class Qwen3VLMoe(Qwen3VL, key="qwen3_vl_moe"):
    """As Qwen3-VL; a token passes two of four experts."""

    model: Any = Qwen3VLMoeForConditionalGeneration
    brief = True

    def config(self, **variant: Any) -> Any:
        plain = super().config()
        experts: dict[str, Any] = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
        }
        words = text("qwen3_vl_moe_text", **experts, **rope(2, 1, 1, mrope_interleaved=True))
        tower = {k: v for k, v in plain.vision_config.to_dict().items() if k != "model_type"}
        return Qwen3VLMoeConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})


class Qwen3_5(Qwen3VL, key="qwen3_5"):
    """As Qwen3-VL without the extra features; the decoder layers ``recurrent`` are gated delta rules."""

    model: Any = Qwen3_5ForConditionalGeneration
    kind: ClassVar[tuple[Any, str]] = (Qwen3_5Config, "qwen3_5_text")
    experts: ClassVar[dict[str, int]] = {}

    def config(self, recurrent: tuple[int, ...] = (3,), **variant: Any) -> Any:
        kinds = ["linear_attention" if i in recurrent else "full_attention" for i in range(5)]
        linear: dict[str, Any] = {f"linear_{name}": n for name, n in (("num_key_heads", 2), ("num_value_heads", 4))}
        linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
        more = {**linear, "layer_types": kinds, "head_dim": 16, **self.experts}
        kind, words = self.kind
        decoder = text(words, **more, **rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5))
        tower = {**TOWER, "num_position_embeddings": 16}
        return kind(**{"vision_config": tower, "text_config": decoder, **IDS, **variant})


class Qwen3_5Moe(Qwen3_5, key="qwen3_5_moe"):
    """As Qwen3.5; a token passes two of four experts, and one that all tokens share."""

    brief = True
    model: Any = Qwen3_5MoeForConditionalGeneration
    kind = (Qwen3_5MoeConfig, "qwen3_5_moe_text")
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }


def seen(draw: Draw, grid: tuple[int, int, int], pixels: str, name: str) -> dict:
    """Flattened patches (T * H * W, 3 * 2 * 4 * 4) and the grid (1, 3)."""
    n = grid[0] * grid[1] * grid[2]
    return {pixels: draw.pixels(n, 3 * 2 * 4 * 4), name: torch.tensor([grid])}
