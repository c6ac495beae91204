"""Mistral 3 and LightOnOCR: a Pixtral tower packs pictures of any size, 2 x 2 patches in a token."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from .common import END, IMAGE, NEWLINE, Case, Draw, Piece, TinyFamily, gather, text

PATCH = 4
TOWER = {
    "model_type": "pixtral",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 12,
    "image_size": 64,
    "patch_size": PATCH,
}


class Mistral3(TinyFamily, key="mistral3"):
    """Shapes in tokens (rows, columns); a break behind each row, an end behind the last."""

    model: Any = transformers.Mistral3ForConditionalGeneration
    brief = True
    shapes = [(4, 4), (2, 6), (4, 3)]

    def config(self, **variant: Any) -> Any:
        words = text("mistral", sliding_window=None)
        own = {"image_token_index": IMAGE, "spatial_merge_size": 2, "tie_word_embeddings": False}
        return transformers.Mistral3Config(**{"vision_config": TOWER, "text_config": words, **own, **variant})

    def tokens(self, height: int, width: int) -> list[int]:
        rows = [[IMAGE] * width + [END if r + 1 == height else NEWLINE] for r in range(height)]
        return [token for row in rows for token in row]

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        height, width = (2 * PATCH * side for side in shape)
        payload = {"pixel_values": draw.pixels(1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
        return Piece("image", self.tokens(*shape), IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values", as_large) | gather(samples, "image_sizes")


class LightOnOcr(Mistral3, key="lighton_ocr"):
    """Without breaks."""

    model: Any = transformers.LightOnOcrForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        own = {"image_token_id": IMAGE, "spatial_merge_size": 2, "tie_word_embeddings": False}
        return transformers.LightOnOcrConfig(
            **{"vision_config": TOWER, "text_config": text("qwen3", 4, sliding_window=None), **own, **variant}
        )

    def tokens(self, height: int, width: int) -> list[int]:
        return [IMAGE] * (height * width)


def as_large(pictures: list[Tensor]) -> Tensor:
    """(M, C, H, W) of pictures (1, C, h, w), filled up with zeros below and to the right."""
    height, width = (max(x.shape[i] for x in pictures) for i in (2, 3))
    pad = torch.nn.functional.pad
    return torch.cat([pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in pictures])
