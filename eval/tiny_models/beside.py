"""Models whose pictures are no columns of the decoder's sequence: Llama 3.2 Vision attends to them across, and Florence-2
has a text encoder that reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

from .common import BOS, EOS, IMAGE, PAD, SIDE, VOCAB, Case, Draw, Piece, TinyFamily, gather, text


class Mllama(TinyFamily, key="mllama", beside=True):
    """Layers 1 and 3 attend across to tiles of 4 x 4 patches and a [CLS]; every picture is filled up to four tiles."""

    model: Any = MllamaForConditionalGeneration
    shapes = [1, 2, 4]  # tiles
    plans = {"mixed": ([["i0"], ["i1", "i2"]], "left"), "right": ([["i0"], ["i1", "i2"]], "right")}
    refuses = ("llm",)
    brief = True
    most = 4

    def config(self, **variant: Any) -> Any:
        tower = {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "max_num_tiles": self.most,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 72,
        }
        words = text("mllama_text_model", cross_attention_layers=[1, 3])
        return MllamaConfig(**{"vision_config": tower, "text_config": words, "image_token_index": IMAGE, **variant})

    def picture(self, config: Any, shape: int, alone: bool, draw: Draw) -> Piece:
        pixels = torch.zeros(self.most, 3, SIDE, SIDE)
        pixels[:shape] = draw.pixels(shape, 3, SIDE, SIDE)
        return Piece("image", [IMAGE], IMAGE, {"pixel_values": pixels, "tiles": torch.tensor(shape)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        (batch, length), places = case.inputs["input_ids"].shape, max(1, *map(len, samples))
        pixels = torch.zeros(batch, places, self.most, 3, SIDE, SIDE)
        ratios = torch.zeros(batch, places, dtype=torch.long)
        tiles = torch.zeros(batch, places, self.most, dtype=torch.long)
        tiles[:, :, 0] = 1  # as the processor has it, also where there is no picture
        sees = torch.zeros(batch, length, places, self.most, dtype=torch.long)
        for b, pieces in enumerate(samples):
            starts = [int(visual.columns[0]) for visual in case.visuals[b]]
            for i, (piece, start, end) in enumerate(zip(pieces, starts, [*starts[1:], length])):
                n = int(piece.payload["tiles"])
                pixels[b, i], ratios[b, i], tiles[b, i, :n] = piece.payload["pixel_values"], {1: 1, 2: 2, 4: 4}[n], 1
                sees[b, start:end, i, :n] = 1
        return {
            "pixel_values": pixels,
            "aspect_ratio_ids": ratios,
            "aspect_ratio_mask": tiles,
            "cross_attention_mask": sees,
        }


class Florence2(TinyFamily, key="florence2", beside=True):
    """A DaViT of 4 x 4 cells; the first token is the mean of all. One picture a prompt, in front of its text."""

    model: Any = Florence2ForConditionalGeneration
    shapes = [None] * 3
    plans = {"mixed": ([["i0"], ["i1"]], "right"), "right": ([["i0"], ["i1"]], "right")}
    listens = False
    refuses = ("llm",)
    brief = True

    def config(self, **variant: Any) -> Any:
        words = {
            "model_type": "bart",
            "vocab_size": VOCAB,
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 4,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": None,
        }
        tower = {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 24],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": 32,
            "drop_path_rate": 0.0,
        }
        own = {"image_token_id": IMAGE, "tie_word_embeddings": False}
        return Florence2Config(**{"vision_config": tower, "text_config": words, **own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        return Piece("image", [IMAGE] * 17, IMAGE, {"pixel_values": draw.pixels(1, 3, SIDE, SIDE)})

    def row(self, pieces: list[Piece], tail: int, draw: Draw) -> tuple[list[int], list[int]]:
        tokens = [token for piece in pieces for token in piece.tokens] + [BOS, *draw.words(tail), EOS]
        return tokens, [0] * (len(tokens) - tail - 2) + [-1] * (tail + 2)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values")
