"""Gemma 3n: three states of every token, keys that later layers use again, a small ResNet in place of MobileNet-v5."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

from .common import END, START, VOCAB, Case, Draw, Piece, TinyFamily, gather, text

TOKENS = 16
SOFT = VOCAB + 1  # pictures and sounds have ids behind those of the text
SIDE = 64


class Gemma3n(TinyFamily, key="gemma3n"):
    """The last two of six layers use the keys of layers 2 and 3; 64 x 64 pixels are 4 x 4 cells of the tower."""

    model: Any = Gemma3nForConditionalGeneration
    shapes = [(SIDE, SIDE)] * 3
    brief = True
    listens = False
    unbilled = "the projector embeds the ids of all columns, too, in case some are of its own vocabulary"

    def config(self, window: int = 512, **variant: Any) -> Any:
        words = text(
            "gemma3n_text",
            6,
            layer_types=["sliding_attention", "full_attention"] * 3,
            sliding_window=window,
            num_kv_shared_layers=2,
            altup_num_inputs=3,
            laurel_rank=8,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCAB,
            final_logit_softcapping=30.0,
            activation_sparsity_pattern=[0.0] * 6,
        )
        words["vocab_size"] = VOCAB + 16
        tower = {
            "architecture": "resnet10t",
            "hidden_size": 512,
            "do_pooling": False,
            "model_args": {"output_stride": 16},
        }
        sounds: dict[str, Any] = {
            "hidden_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "input_feat_size": 32,
        }
        sounds |= {"sscp_conv_channel_size": [4, 4]}
        own = {
            "text_config": words,
            "vision_config": {**tower, "vocab_size": 8, "vocab_offset": VOCAB},
            "audio_config": {**sounds, "vocab_size": 8, "vocab_offset": VOCAB + 8},
            "vision_soft_tokens_per_image": TOKENS,
            "image_token_id": SOFT,
            "audio_token_id": VOCAB + 9,
            "boi_token_id": START,
            "eoi_token_id": END,
            "boa_token_id": START,
            "eoa_token_id": END,
            "tie_word_embeddings": False,
        }
        return Gemma3nConfig(**{**own, **variant})

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        model.lm_head.weight[VOCAB:] = 0

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [SOFT] * TOKENS + [END]
        return Piece("image", tokens, SOFT, {"pixel_values": draw.pixels(1, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values")
