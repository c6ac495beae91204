"""Towers without attention to listen to, one grid of tokens per tile: GOT-OCR 2, Idefics2, FastVLM, PerceptionLM."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
)

from .common import END, IMAGE, SIDE, START, VIDEO, Case, Draw, Piece, gather, text, vision
from .tiles import PER_TILE, Idefics3, InternVL

LATENTS = 8
SAM = {"output_channels": 16, "window_size": 7, "global_attn_indexes": [1], "mlp_dim": 32, "image_size": 64}


class GotOcr2(InternVL, key="got_ocr2"):
    """Windows and relative positions; two strided convolutions, so that 4 x 4 cells make a token, with their neighbours."""

    brief = True
    listens = False
    model: Any = GotOcr2ForConditionalGeneration
    shapes = [1, 1, 1]
    film_shape: Any = None
    attention = {"sdpa": {"text_config": "sdpa", "vision_config": "eager"}}
    side = 64

    def config(self, **variant: Any) -> Any:
        tower = {**vision("", 4, depth=2), **SAM, "num_attention_heads": 2}
        del tower["model_type"]
        own = {"vision_config": tower, "text_config": text("qwen2"), "image_token_index": IMAGE}
        return GotOcr2Config(**{**own, "image_seq_length": PER_TILE, "tie_word_embeddings": False, **variant})

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        pixels = draw.pixels(tiles, 3, self.side, self.side)
        return Piece("image", [START] + [IMAGE] * PER_TILE * tiles + [END], IMAGE, {"pixel_values": pixels})


class FastVLM(GotOcr2, key="fast_vlm"):
    """A small ResNet in place of FastViT: convolutions, a token for each cell of its last map."""

    model: Any = FastVlmForConditionalGeneration
    attention = {}

    def config(self, **variant: Any) -> Any:
        tower = {"model_type": "timm_wrapper", "architecture": "resnet10t", "hidden_size": 512, "num_classes": 0}
        tower |= {"do_pooling": False, "model_args": {"output_stride": 16}}
        own = {"vision_config": tower, "text_config": text("qwen2"), "image_token_index": IMAGE}
        return FastVlmConfig(**{**own, "image_seq_length": PER_TILE, "tie_word_embeddings": False, **variant})


class PerceptionLM(InternVL, key="perception_lm"):
    """Squares of 2 x 2 tokens averaged; the tiles of all samples are one row, and so are the frames of all videos."""

    brief = True
    listens = False
    model: Any = PerceptionLMForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        size = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": SIDE, "patch_size": 4}
        tower = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 0}
        tower |= {"do_pooling": False, "model_args": {**size, "global_pool": "", "use_post_transformer_norm": False}}
        own = {"vision_config": tower, "text_config": text("llama"), "image_token_id": IMAGE, "video_token_id": VIDEO}
        more = {"projector_pooling_ratio": 2, "vision_use_cls_token": True, "tie_word_embeddings": False}
        return PerceptionLMConfig(**{**own, **more, **variant})

    def film(self, config: Any, frames: int, draw: Draw) -> Piece:
        tokens = [START] + [VIDEO] * PER_TILE * frames + [END]
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": draw.pixels(frames, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        names = ("pixel_values", "pixel_values_videos")
        return {name: x[None] for own in names for name, x in gather(samples, own).items()}


class Idefics2(Idefics3, key="idefics2"):
    """Latents of a perceiver instead of patches; pictures of a sample in a row, filled up with empty ones."""

    brief = True
    listens = False
    model: Any = Idefics2ForConditionalGeneration
    shapes = [(0, 0)] * 3

    def config(self, **variant: Any) -> Any:
        tower = {k: v for k, v in vision("", 4).items() if k != "model_type"}
        resampler: dict[str, Any] = {"hidden_size": 32, "resampler_n_latents": LATENTS, "resampler_depth": 2}
        resampler |= {"resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1}
        own = {"vision_config": tower, "perceiver_config": resampler, "image_token_id": IMAGE}
        words = text("mistral", sliding_window=None)
        return Idefics2Config(**{**own, "text_config": words, "tie_word_embeddings": False, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        mask = torch.ones(1, SIDE, SIDE, dtype=torch.long)
        payload = {"pixel_values": draw.pixels(1, 3, SIDE, SIDE), "pixel_attention_mask": mask}
        return Piece("image", [START] + [IMAGE] * LATENTS + [START], IMAGE, payload)
