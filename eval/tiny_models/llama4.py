"""Llama 4: tiles of 16 tokens, chunks of keys in all layers but the fourth, which has no rotary embedding."""

from __future__ import annotations

from typing import Any

from transformers import Llama4Config, Llama4ForConditionalGeneration

from .common import END, GLOBAL, IMAGE, NEWLINE, SIDE, START, TILE, Case, Draw, Piece, TinyFamily, gather, text

PER_TILE = 16


class Llama4(TinyFamily, key="llama4"):
    """``shapes`` are (rows, columns) of tiles, followed by the whole picture; (1, 1) is the whole picture alone."""

    model: Any = Llama4ForConditionalGeneration
    shapes = [(1, 2), (1, 1), (2, 1)]
    brief = True
    fault = (
        "it reads `image_outputs` of what its own language model returns, which has no such field; use transformers 5.17 to "
        "5.23, or set the field to None by a forward hook on model.language_model"
    )

    def config(self, window: int = 512, **variant: Any) -> Any:
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
        more: dict[str, Any] = {**experts, "intermediate_size_mlp": 48, "attention_chunk_size": window}
        rope = {"rope_type": "default", "rope_theta": 1e4}
        tower = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
        tower |= {"image_size": SIDE, "patch_size": 4, "vision_output_dim": 32, "projector_input_dim": 32}
        seen = {**tower, "pixel_shuffle_ratio": 0.5, "projector_output_dim": 32, "rope_parameters": rope}
        own = {"vision_config": seen, "text_config": text("llama4_text", **more, rope_parameters=rope)}
        ids = {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END}
        return Llama4Config(**{**own, **ids, "tie_word_embeddings": False, **variant})

    def mend(self, model: Any) -> None:
        model.language_model.register_forward_hook(with_field)

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        rows, columns = shape
        tokens = [START]
        for _ in range(rows if rows * columns > 1 else 0):
            tokens += [token for c in range(columns) for token in ([IMAGE] * PER_TILE + [TILE] * (c + 1 < columns))]
            tokens += [NEWLINE]
        tokens += [GLOBAL] + [IMAGE] * PER_TILE + [END]
        tiles = rows * columns + (rows * columns > 1)
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values")


def with_field(module: Any, args: Any, output: Any) -> None:
    if not hasattr(output, "image_outputs"):
        output.image_outputs = None
