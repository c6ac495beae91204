"""Granite 4 Vision: windowed Q-Formers, whose tokens join in front of chosen decoder layers and not at its entrance."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import IMAGE, NEWLINE, SIDE, Draw, Piece, text, vision
from .llava import PINPOINTS, LlavaNext, best_tiles, side, without_padding


class Granite4Vision(LlavaNext, key="granite4_vision"):
    """8 x 8 patches a tile, 2 x 2 of them a window of one query; layers 0, 1 and 2 are handed features."""

    model: Any = getattr(transformers, "Granite4VisionForConditionalGeneration", None)
    since = (5, 20)
    brief = True

    def config(self, **variant: Any) -> Any:
        queries = {
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "max_position_embeddings": 64,
            "use_qformer_text_input": False,
            "vocab_size": 8,
        }
        scales: dict[str, Any] = {"attention_multiplier": 0.35, "embedding_multiplier": 1.5, "logits_scaling": 2.0}
        own = {
            "vision_config": vision(
                "clip_vision_model", 4, hidden_size=64, num_attention_heads=2
            ),  # 64 for each query head
            "text_config": text("granite4_vision_text", **scales, residual_multiplier=0.7),
            "qformer_config": queries,
            "image_token_index": IMAGE,
            "image_grid_pinpoints": PINPOINTS,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 2], [-1, 0]],
            "spatial_target_layers": [1],
            "tie_word_embeddings": False,
        }
        return transformers.Granite4VisionConfig(**{**own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        (rows, columns), s = best_tiles(shape), side(config) // 2
        height, width = without_padding(shape, rows * s, columns * s)
        payload = {
            "pixel_values": draw.pixels(1 + rows * columns, 3, SIDE, SIDE),
            "image_sizes": torch.tensor([shape]),
        }
        return Piece("image", [IMAGE] * (s**2 + height * (width + 1)) + [NEWLINE], IMAGE, payload)
