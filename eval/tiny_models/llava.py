"""LLaVA, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision, Video-LLaVA."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from .common import IMAGE, NEWLINE, SIDE, VIDEO, Case, Draw, Piece, TinyFamily, gather, stack_tiles, text, vision

PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
CLIP = vision("clip_vision_model", projection_dim=24)
SIGLIP = vision("siglip_vision_model", vision_use_head=False)


class Llava(TinyFamily, key="llava"):
    """One tile per image, all of one size."""

    model: Any = LlavaForConditionalGeneration
    shapes = [(SIDE, SIDE)] * 3
    film_shape: Any = None

    def config(self, **variant: Any) -> Any:
        return LlavaConfig(
            **{"vision_config": CLIP, "text_config": text("llama"), "image_token_index": IMAGE, **variant}
        )

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [IMAGE] * side(config) ** 2 + [NEWLINE]
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(1, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values") | gather(samples, "pixel_values_videos")


class LlavaNext(Llava, key="llava_next"):
    """A base tile, and tiles of the best fitting resolution without their padding, with a newline after each row."""

    model: Any = LlavaNextForConditionalGeneration
    shapes = [(16, 64), (60, 30), (40, 36)]
    plain_shapes = [(SIDE, 2 * SIDE), (2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE)]

    def config(self, **variant: Any) -> Any:
        own = {"image_token_index": IMAGE, "image_grid_pinpoints": PINPOINTS}
        return LlavaNextConfig(**{"vision_config": CLIP, "text_config": text("llama"), **own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        rows, columns = best_tiles(shape)
        height, width = without_padding(shape, rows * side(config), columns * side(config))
        tokens = [IMAGE] * (side(config) ** 2 + height * (width + 1)) + [NEWLINE]
        payload = {
            "pixel_values": draw.pixels(1 + rows * columns, 3, SIDE, SIDE),
            "image_sizes": torch.tensor([shape]),
        }
        return Piece("image", tokens, IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return (
            gather(samples, "pixel_values", stack_tiles)
            | gather(samples, "image_sizes")
            | gather(samples, "pixel_values_videos")
        )


class LlavaNextVideo(LlavaNext, key="llava_next_video"):
    """Frames are pooled 2 x 2 after the tower; no newline tokens."""

    model: Any = LlavaNextVideoForConditionalGeneration
    brief = True
    film_shape: Any = 3

    def config(self, **variant: Any) -> Any:
        own = {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": PINPOINTS}
        return LlavaNextVideoConfig(**{"vision_config": CLIP, "text_config": text("llama"), **own, **variant})

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [VIDEO] * frames * (side(config) // 2) ** 2 + [NEWLINE]
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": draw.pixels(1, frames, 3, SIDE, SIDE)})


class LlavaOnevision(LlavaNext, key="llava_onevision"):
    """As LLaVA-NeXT for the only image of a sample, one tile and a newline for each of several; pooled videos."""

    model: Any = LlavaOnevisionForConditionalGeneration
    film_shape: Any = 3

    def config(self, **variant: Any) -> Any:
        own = {
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            "image_grid_pinpoints": PINPOINTS,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        }
        return LlavaOnevisionConfig(**{"vision_config": SIGLIP, "text_config": text("qwen2"), **own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        rows, columns, s = *best_tiles(shape), side(config)
        height, width = without_padding(shape, rows * s, columns * s)
        ratio = math.sqrt(height * width / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * s**2))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
        n = s**2 + (height * (width + 1) if alone else 1)
        payload = {
            "pixel_values": draw.pixels(1 + rows * columns if alone else 1, 3, SIDE, SIDE),
            "image_sizes": torch.tensor([shape]),
        }
        return Piece("image", [IMAGE] * n + [NEWLINE], IMAGE, payload)

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [VIDEO] * (frames * math.ceil(side(config) / 2) ** 2 + 1) + [NEWLINE]
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": draw.pixels(1, frames, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = super().collate(samples, case, config)
        if "pixel_values" in out:  # samples without an image are left out, as the processor does
            counts = [sum(piece.modality == "image" for piece in pieces) for pieces in samples]
            out["batch_num_images"] = torch.tensor([n for n in counts if n])
        return out


class VideoLlava(Llava, key="video_llava"):
    """Two towers; the frames of a video keep their [CLS]. Images go by the name its processor still gives them."""

    model: Any = VideoLlavaForConditionalGeneration
    film_shape: Any = 2

    def config(self, **variant: Any) -> Any:
        own = {"image_token_index": IMAGE, "video_token_index": VIDEO}
        return VideoLlavaConfig(**{"vision_config": CLIP, "text_config": text("llama"), **own, **variant})

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [VIDEO] * frames * (side(config) ** 2 + 1) + [NEWLINE]
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": draw.pixels(1, frames, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = super().collate(samples, case, config)
        return {"pixel_values_images" if name == "pixel_values" else name: value for name, value in out.items()}


def side(config: Any) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def best_tiles(shape: tuple[int, int]) -> tuple[int, int]:
    """Tiles (rows, columns) of the resolution that keeps most of the image, and wastes least."""
    height, width = shape

    def fit(resolution: list[int]) -> tuple[int, int]:
        scale = min(resolution[0] / height, resolution[1] / width)
        kept = min(int(height * scale) * int(width * scale), height * width)
        return kept, -(resolution[0] * resolution[1] - kept)

    rows, columns = max(PINPOINTS, key=fit)
    return rows // SIDE, columns // SIDE


def without_padding(shape: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of tower cells left once the padding of a (height, width) image is taken off both sides."""
    height, width = shape
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(round(height * columns / width, 7))) // 2), columns
    return rows, columns - 2 * ((columns - int(round(width * rows / height, 7))) // 2)
