"""LFM3-VL: a packed tower with convolutions among its blocks; short convolutions and windows in the decoder."""

from __future__ import annotations

from typing import Any

import transformers

from .common import IMAGE, VIDEO, Case, Piece, text
from .qwen import Qwen3VL


class Lfm3VL(Qwen3VL, key="lfm3_vl"):
    """The last block of the tower is a convolution; so is decoder layer 0, and layer 2 looks through a window."""

    brief = True
    model: Any = getattr(transformers, "Lfm3VlForConditionalGeneration", None)  # from 5.23

    def config(self, window: int = 512, **variant: Any) -> Any:
        kinds = ["conv", "full_attention", "sliding_attention", "full_attention", "full_attention"]
        words = text("lfm3", sliding_window=window, layer_types=kinds, conv_L_cache=3)
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "patch_size": 4, "num_hidden_layers": 4}
        tower |= {"num_attention_heads": 2, "num_key_value_heads": 1}
        tower |= {"layer_types": ["full_attention", "conv", "full_attention", "conv"]}
        own = {"image_token_id": IMAGE, "video_token_id": VIDEO, "projector_hidden_size": 40}
        parts = {"vision_config": tower, "text_config": words, "tie_word_embeddings": False}
        return transformers.Lfm3VlConfig(**{**parts, **own, **variant})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        made = super().collate(samples, case, config)
        return {name: x for name, x in made.items() if name != "mm_token_type_ids"}
