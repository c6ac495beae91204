"""Muse Glimmer: a packed tower whose rows are sorted by windows of patches."""

from __future__ import annotations

from typing import Any

import transformers

from .common import IMAGE, VIDEO, Case, Piece, text
from .qwen import Qwen2VL


class MuseGlimmer(Qwen2VL, key="muse_glimmer"):
    """Windows of 4 x 4 patches in some blocks; grids in patches, 2 x 2 in a token; sliding layers in the decoder."""

    model: Any = getattr(transformers, "MuseGlimmerForConditionalGeneration", None)
    brief = True

    def config(self, **variant: Any) -> Any:
        kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
        words = text("muse_glimmer_text", sliding_window=256, layer_types=kinds)
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
        tower |= {"num_hidden_layers": 4, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4}
        tower |= {"max_position_embeddings": 64, "merge_size": 2}
        tower |= {"layer_types": ["window_attention", "full_attention", "window_attention", "full_attention"]}
        own = {"image_token_id": IMAGE, "video_token_id": VIDEO, "out_hidden_size": 96, "projector_hidden_size": 40}
        parts = {"vision_config": tower, "text_config": words, "tie_word_embeddings": False}
        return transformers.MuseGlimmerConfig(**{**parts, **own, **variant})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        made = super().collate(samples, case, config)
        return {name: x for name, x in made.items() if name != "mm_token_type_ids"}
