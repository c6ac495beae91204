"""InternVL, SmolVLM and Idefics3: pixel shuffle, pictures cut into tiles that all count as images."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .common import (
    CLOCK,
    END,
    GLOBAL,
    IMAGE,
    NEWLINE,
    SIDE,
    START,
    TILE,
    Case,
    Draw,
    Piece,
    TinyFamily,
    gather,
    text,
    vision,
)

PER_TILE = 16  # 8 x 8 cells of the tower, 2 x 2 of them in a token


class InternVL(TinyFamily, key="internvl"):
    """``shapes`` count tiles (with the thumbnail where there are several); videos are tiles with words between."""

    model: Any = InternVLForConditionalGeneration
    shapes = [1, 3, 1]
    film_shape: Any = 2

    def config(self, **variant: Any) -> Any:
        tower = vision("internvl_vision", 4, layer_scale_init_value=0.7, image_size=[SIDE] * 2, use_qk_norm=True)
        tower |= {"patch_size": [4, 4], "norm_type": "layer_norm"}
        own = {"image_token_id": IMAGE, "image_seq_length": PER_TILE, "tie_word_embeddings": False}
        return InternVLConfig(**{"vision_config": tower, "text_config": text("qwen2"), **own, **variant})

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [IMAGE] * PER_TILE * tiles + [END]
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE)})

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens: list[int] = []
        for i in range(frames):
            tokens += [NEWLINE] * (i > 0) + [CLOCK, *draw.words(1), START] + [IMAGE] * PER_TILE + [END]
        return Piece("video", tokens, IMAGE, {"pixel_values": draw.pixels(frames, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return gather(samples, "pixel_values")


class AyaVision(InternVL, key="aya_vision"):
    """Tiles as in InternVL, a SigLIP tower, and words between tiles."""

    model: Any = AyaVisionForConditionalGeneration
    brief = True
    film_shape: Any = None

    def config(self, window: int = 512, **variant: Any) -> Any:
        words = text("cohere2", sliding_window=window, logit_scale=1.0)
        own = {"image_token_index": IMAGE, "downsample_factor": 2, "tie_word_embeddings": False}
        return AyaVisionConfig(
            **{"vision_config": vision("siglip_vision_model", 4), "text_config": words, **own, **variant}
        )

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        tokens = [START]
        for i in range(tiles):
            tokens += [TILE + i if i + 1 < tiles else GLOBAL] + [IMAGE] * PER_TILE
        return Piece("image", [*tokens, END], IMAGE, {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE)})


class Idefics3(TinyFamily, key="idefics3"):
    """``shapes`` are (rows, columns) of tiles, followed by the whole picture; (0, 0) is the whole picture alone."""

    model: Any = Idefics3ForConditionalGeneration
    brief = True
    shapes = [(1, 2), (0, 0), (2, 1)]
    film_shape: Any = None

    def config(self, **variant: Any) -> Any:
        return self.own(Idefics3Config, "idefics3_vision", variant)

    def own(self, kind: Any, tower: str, variant: dict) -> Any:
        return kind(
            **{
                "vision_config": vision(tower, 4),
                "text_config": text("llama"),
                "image_token_id": IMAGE,
                "scale_factor": 2,
                **variant,
            }
        )

    def picture(self, config: Any, tiles: Any, alone: bool, draw: Draw) -> Piece:
        tokens: list[int] = []
        for r in range(tiles[0]):
            for c in range(tiles[1]):
                tokens += [START, TILE + 3 * r + c] + [IMAGE] * PER_TILE
            tokens += [NEWLINE]
        tokens += [NEWLINE] * (tiles[0] > 0) + [START, GLOBAL] + [IMAGE] * PER_TILE + [START]
        return Piece("image", tokens, IMAGE, tiles_of(draw, tiles[0] * tiles[1] + 1))

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        """Pictures and their pixel masks per sample, filled up with empty ones."""
        out = {}
        for name in ("pixel_values", "pixel_attention_mask"):
            shape = [piece.payload[name].shape[1:] for pieces in samples for piece in pieces]
            if shape:
                none = torch.zeros(0, *shape[0], dtype=torch.float if name == "pixel_values" else torch.long)
                rows = [torch.cat([none, *(piece.payload[name] for piece in pieces)]) for pieces in samples]
                most = max(map(len, rows))
                out[name] = torch.stack(
                    [torch.cat([r, none.new_zeros(most - len(r), *shape[0])]) for r in rows],
                )
        return out


class SmolVLM(Idefics3, key="smolvlm"):
    """As Idefics3; the frames of a video are whole pictures behind time stamps."""

    model: Any = SmolVLMForConditionalGeneration
    brief = False
    film_shape: Any = 3
    apart = "its processor hands over both under one name and takes one of them"

    def config(self, **variant: Any) -> Any:
        return self.own(SmolVLMConfig, "smolvlm_vision", variant)

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [*draw.words(2), NEWLINE]
        for _ in range(frames):
            tokens += [NEWLINE, CLOCK, *draw.words(1), START, GLOBAL] + [IMAGE] * PER_TILE + [START]
        return Piece("video", [*tokens, NEWLINE, NEWLINE], IMAGE, tiles_of(draw, frames))


def tiles_of(draw: Draw, n: int) -> dict:
    return {
        "pixel_values": draw.pixels(n, 3, SIDE, SIDE),
        "pixel_attention_mask": torch.ones(n, SIDE, SIDE, dtype=torch.long),
    }
