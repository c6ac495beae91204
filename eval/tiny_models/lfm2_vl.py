"""LFM2-VL: a tower that pads pictures to one number of patches; short convolutions and attention in the decoder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from .common import END, IMAGE, START, Case, Draw, Piece, TinyFamily, gather, text, vision
from .gemma4 import filled

PATCH = 4


class Lfm2VL(TinyFamily, key="lfm2_vl"):
    """Sizes in tokens (down, across) of 2 x 2 patches; layers 0 and 2 are short convolutions."""

    model: Any = Lfm2VlForConditionalGeneration
    shapes = [(4, 4), (2, 6), (4, 3)]
    brief = True

    def config(self, **variant: Any) -> Any:
        kinds = ["conv", "full_attention", "conv", "full_attention", "full_attention"]
        words = text("lfm2", layer_types=kinds, block_multiple_of=16)
        del words["head_dim"]
        tower = vision("siglip2_vision_model", PATCH, num_patches=4, vision_use_head=False)
        own = {
            "image_token_id": IMAGE,
            "projector_hidden_size": 32,
            "downsample_factor": 2,
            "tie_word_embeddings": False,
        }
        return Lfm2VlConfig(**{"vision_config": tower, "text_config": words, **own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        down, across = (2 * side for side in shape)
        seen = {
            "pixel_values": draw.pixels(1, down * across, 3 * PATCH**2),
            "spatial_shapes": torch.tensor([[down, across]]),
            "pixel_attention_mask": torch.ones(1, down * across, dtype=torch.long),
        }
        return Piece("image", [START] + [IMAGE] * (shape[0] * shape[1]) + [END], IMAGE, seen)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        padded = gather(samples, "pixel_values", filled(0)) | gather(samples, "pixel_attention_mask", filled(0))
        return padded | gather(samples, "spatial_shapes")
