"""PaddleOCR-VL and VideoLLaMA 3: SigLIP towers that pack pictures of any size."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import CLOCK, END, IMAGE, START, VIDEO, Case, Draw, Piece, TinyFamily, gather, text, vision
from .qwen import IDS, rope

PATCH = 4


class PaddleOCRVL(TinyFamily, key="paddleocr_vl"):
    """Grids in patches (rows, columns), 2 x 2 in a token."""

    model: Any = transformers.PaddleOCRVLForConditionalGeneration
    brief = True
    shapes = [(8, 8), (4, 12), (8, 6)]

    def config(self, **variant: Any) -> Any:
        tower = vision("paddleocr_vl_vision", PATCH, 3, spatial_merge_size=2) | {"num_attention_heads": 2}
        words = text("paddleocr_vl_text", **rope(1, 1, 2))
        return transformers.PaddleOCRVLConfig(**{"vision_config": tower, "text_config": words, **IDS, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        height, width = shape
        grid = torch.tensor([[1, height, width]])
        pixels = draw.pixels(height * width, 3, PATCH, PATCH)
        tokens = [START, *[IMAGE] * (height * width // 4), END]
        return Piece("image", tokens, IMAGE, {"pixel_values": pixels, "image_grid_thw": grid})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        pixels = gather(samples, "pixel_values")
        types = {"mm_token_type_ids": (case.inputs["input_ids"] == IMAGE).long()}
        return types | pixels | gather(samples, "image_grid_thw")


class VideoLlama3(TinyFamily, key="video_llama_3"):
    """Grids in patches (rows, columns), each a token; a video is (frames, rows, columns), 2 x 2 in a token, some left out."""

    model: Any = transformers.VideoLlama3ForConditionalGeneration
    brief = True
    shapes = [(4, 4), (2, 6), (4, 3)]
    film_shape: Any = (3, 4, 6)

    def config(self, **variant: Any) -> Any:
        tower = vision("video_llama_3_vision", PATCH, 3) | {"num_attention_heads": 2}
        del tower["image_size"]
        own = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}
        return transformers.VideoLlama3Config(
            **{"vision_config": tower, "text_config": text("qwen2"), **own, **variant}
        )

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        n = shape[0] * shape[1]
        sizes = {"image_grid_thw": torch.tensor([[1, *shape]]), "image_merge_sizes": torch.tensor([1])}
        return Piece("image", [IMAGE] * n, IMAGE, {"pixel_values": draw.pixels(n, 3 * PATCH**2), **sizes})

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        frames, n = shape[0], shape[1] * shape[2]
        left = torch.arange(frames * n // 4).view(frames, -1) % 3 != 1
        left[0] = True
        tokens = [token for own in left.sum(dim=1).tolist() for token in (CLOCK, *[VIDEO] * own)]
        sizes = {"video_grid_thw": torch.tensor([shape]), "video_merge_sizes": torch.tensor([2])}
        pixels = draw.pixels(frames * n, 3 * PATCH**2)
        left = left.flatten()
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": pixels, "video_compression_mask": left, **sizes})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        names = [f"{medium}_{name}" for medium in ("image", "video") for name in ("grid_thw", "merge_sizes")]
        found = [
            gather(samples, name) for name in (*names, "video_compression_mask", "pixel_values", "pixel_values_videos")
        ]
        return {name: x for own in found for name, x in own.items()}
