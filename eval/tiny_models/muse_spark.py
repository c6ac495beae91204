"""Muse Spark: the tower of Muse Glimmer, a mixture of experts in the decoder, and sounds."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import IMAGE, TILE, VIDEO, Case, Draw, Piece, gather, text
from .muse import MuseGlimmer

HEARD, SAMPLES, LONGEST = TILE, 4, 24  # id of the placeholders of a sound, samples of one of them, and of every sound


class MuseSpark(MuseGlimmer, key="muse_spark"):
    """(rows, columns, tokens of a sound that is heard behind it); a token passes two of four experts."""

    model: Any = getattr(transformers, "MuseSparkForConditionalGeneration", None)  # from 5.20
    shapes = [(8, 8, 0), (4, 12, 3), (8, 6, 0)]

    def config(self, **variant: Any) -> Any:
        tower = {**super().config().vision_config.to_dict(), "model_type": "muse_spark_vision"}
        experts: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
        scales: dict[str, Any] = {"output_multiplier": 1.0, "qk_scale_factor": 1.0}
        words = text("muse_spark_text", sliding_window=256, layer_types=kinds, moe_hidden_size=24, **experts, **scales)
        ears: dict[str, Any] = {"patch_sizes": [2, 2], "hidden_sizes": [8, 16], "depths": [1, 1]}
        ears |= {"num_hidden_layers": 2, "out_hidden_size": 32}
        parts = {"vision_config": tower, "text_config": words, "audio_config": ears}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": HEARD, "tie_word_embeddings": False}
        widths = {"out_hidden_size": 96, "projector_hidden_size": 40}
        return transformers.MuseSparkConfig(**{**parts, **ids, **widths, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        piece = super().picture(config, shape[:2], alone, draw)
        if shape[2]:
            piece.tokens.extend([HEARD] * shape[2])
            real = (torch.arange(LONGEST) < SAMPLES * shape[2]).long()[None]
            piece.payload.update(input_values=draw.pixels(1, LONGEST), input_values_mask=real)
        return piece

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = super().collate(samples, case, config)
        return out | gather(samples, "input_values") | gather(samples, "input_values_mask")
