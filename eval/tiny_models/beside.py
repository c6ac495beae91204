"""Models whose pictures are no columns of the decoder's sequence: Llama 3.2 Vision attends to them across."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from .common import IMAGE, SIDE, Case, Draw, Piece, TinyFamily, text


class Mllama(TinyFamily, key="mllama", beside=True):
    """Layers 1 and 3 attend across to tiles of 4 x 4 patches and a [CLS]; every picture is filled up to four tiles."""

    model: Any = MllamaForConditionalGeneration
    shapes = [1, 2, 4]  # tiles
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
