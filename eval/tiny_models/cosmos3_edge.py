"""Cosmos 3 Edge: a packed SigLIP 2 without rotary embedding, positions of three axes in the decoder."""

from __future__ import annotations

from typing import Any

import transformers

from .common import Draw, Piece, text
from .qwen import IDS, Qwen3VL, rope


class Cosmos3Edge(Qwen3VL, key="cosmos3_edge"):
    """Grids in patches, 2 x 2 of which are a token and follow one another; frames are not joined."""

    brief = True
    model: Any = getattr(transformers, "Cosmos3EdgeForConditionalGeneration", None)

    def config(self, **variant: Any) -> Any:
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "patch_size": 4}
        tower |= {"num_hidden_layers": 4, "num_patches": 16}
        words = text("cosmos3_edge_text", **rope(2, 1, 1))
        parts = {"vision_config": tower, "text_config": words, "projector_hidden_size": 40}
        return transformers.Cosmos3EdgeConfig(**{**parts, **IDS, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        return one_frame(super().picture(config, shape, alone, draw))

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        return one_frame(super().film(config, shape, draw))


def one_frame(piece: Piece) -> Piece:
    """A patch is of one frame instead of two."""
    name = "pixel_values" if "pixel_values" in piece.payload else "pixel_values_videos"
    piece.payload[name] = piece.payload[name].chunk(2, dim=1)[0]
    return piece
