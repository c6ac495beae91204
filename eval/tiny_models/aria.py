"""Aria: learned queries for the patches of each tile, a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import IMAGE, SIDE, Case, Draw, Piece, TinyFamily, gather, text, vision

QUERIES = 8


class Aria(TinyFamily, key="aria"):
    """Shapes are numbers of tiles, 8 queries for each."""

    model: Any = transformers.AriaForConditionalGeneration
    brief = True
    listens = False
    attention = {"sdpa": {"text_config": "sdpa", "vision_config": "sdpa"}}
    shapes = [1, 2, 1]

    def config(self, **variant: Any) -> Any:
        tower = vision("idefics3_vision", 4, 3) | {"num_attention_heads": 2}
        words = text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        queries = {"projector_patch_to_query_dict": {(SIDE // 4) ** 2: QUERIES}}
        own = {"vision_config": tower, "text_config": words, "image_token_index": IMAGE, "tie_word_embeddings": False}
        return transformers.AriaConfig(**{**own, **queries, **variant})

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        mask = torch.ones(tiles, SIDE, SIDE, dtype=torch.bool)
        payload = {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE), "pixel_mask": mask}
        return Piece("image", [IMAGE] * (QUERIES * tiles), IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values") | gather(samples, "pixel_mask")
