"""Cohere Compass: the tower of Qwen3-VL, and a decoder whose attention and MLP stand beside each other."""

from __future__ import annotations

from typing import Any

import transformers

from .common import text
from .qwen import IDS, TOWER, Qwen3VL


class CohereCompass(Qwen3VL, key="cohere_compass"):
    """Layers 0 and 2 of the decoder look through a window; the others rotate nothing."""

    brief = True
    model: Any = getattr(transformers, "CohereCompassForConditionalGeneration", None)

    def config(self, window: int = 512, **variant: Any) -> Any:
        kinds = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
        turned = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        rope = {"sliding_attention": turned, "full_attention": None}
        words = text("cohere_compass_text", sliding_window=window, layer_types=kinds, rope_parameters=rope)
        del words["head_dim"]
        tower = {**TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]}
        return transformers.CohereCompassConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})
