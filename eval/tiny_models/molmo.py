"""Molmo 2: crops of one size, tokens of listed patches, pictures that attend to each other both ways."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from .common import CLOCK, END, GLOBAL, IMAGE, NEWLINE, START, TILE, Case, Draw, Piece, TinyFamily, gather, text, vision

PATCHES = 16  # 4 x 4 of a crop
AROUND = (START, END, NEWLINE, GLOBAL)


class Molmo2(TinyFamily, key="molmo2"):
    """Shapes in tokens (rows, columns), 2 x 2 of them from a crop, and 2 x 2 from the whole picture; a video is of frames."""

    model: Any = getattr(transformers, "Molmo2ForConditionalGeneration", None)
    brief = True
    apart = "such a model takes pixels of one of them"
    shapes = [(2, 4), (2, 2), (4, 2)]
    film_shape: Any = 2

    def config(self, **variant: Any) -> Any:
        words = text("molmo2_text", additional_vocab_size=8)
        heads = {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12}
        tower = vision("molmo2_vision", 8, 3, **heads, image_size=[32, 32])
        adapter = {**heads, "vision_feature_layer": [1, 0], "intermediate_size": 120, "text_hidden_size": 32}
        around = {"image_start_token_id": START, "image_end_token_id": END, "low_res_image_start_token_id": GLOBAL}
        around |= {"frame_start_token_id": TILE, "frame_end_token_id": TILE + 1, "image_patch_id": IMAGE}
        parts = {"text_config": words, "vision_config": tower, "adapter_config": adapter}
        return transformers.Molmo2Config(**{**parts, **around, "tie_word_embeddings": False, **variant})

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Patches of a token share it, where large weights would give it to one of them."""
        model.base_model.multi_modal_projector.image_pooling_2d.q_proj.weight.mul_(0.02)

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        height, width = shape
        down, across = height // 2, width // 2
        first = PATCHES * (1 + torch.arange(down * across).view(down, 1, across, 1))  # patch of each crop
        cells = first + torch.arange(PATCHES).view(4, 1, 4)
        tokens = [GLOBAL, *([IMAGE] * 2 + [NEWLINE]) * 2, END, START, *([IMAGE] * width + [NEWLINE]) * height, END]
        payload = {
            "pixel_values": draw.pixels(1 + down * across, PATCHES, 3 * 64),
            "image_token_pooling": torch.cat(
                [pooled(torch.arange(PATCHES).view(4, 4)), pooled(cells.reshape(2 * height, -1))]
            ),
            "image_grids": torch.tensor([[2, 2, height, width]]),
            "image_num_crops": torch.tensor([1 + down * across]),
        }
        return Piece("image", tokens, IMAGE, payload)

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [token for _ in range(frames) for token in (CLOCK, START, *[IMAGE] * 4, END)]
        cells = torch.arange(PATCHES * frames).view(frames, 4, 4)
        payload = {
            "pixel_values_videos": draw.pixels(frames, PATCHES, 3 * 64),
            "video_token_pooling": torch.cat([pooled(frame) for frame in cells]),
            "video_grids": torch.tensor([[frames, 2, 2]]),
        }
        return Piece("video", tokens, IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        ids = case.inputs["input_ids"]
        out = {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, *AROUND])).long()}
        for name in ("image_grids", "image_num_crops", "video_grids"):
            out |= gather(samples, name)
        for medium, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            out |= gather(samples, pixels)
            seen = [piece.payload[pixels] for own in samples for piece in own if pixels in piece.payload]
            before = [sum(len(x) for x in seen[:i]) for i in range(len(seen))]
            out |= gather(samples, f"{medium}_token_pooling", lambda found: through_all(found, before))  # noqa: B023
        return out


def pooled(cells: Tensor) -> Tensor:
    """(rows * columns, 4) of numbered patches (2 * rows, 2 * columns)."""
    return cells.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)


def through_all(pooling: list[Tensor], before: list[int]) -> Tensor:
    """Patches counted through the crops of all pictures; ``before`` each, so many crops come."""
    return torch.cat([own + PATCHES * crops for own, crops in zip(pooling, before)])
