"""One grid of tokens per tile, of towers that can be listened to: Command A Vision, VipLLaVA, DeepSeek-VL, Janus and others."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from transformers import (
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from .common import (
    END,
    GLOBAL,
    IMAGE,
    NEWLINE,
    PAD,
    SIDE,
    START,
    TILE,
    VOCAB,
    Case,
    Draw,
    Piece,
    gather,
    stack_tiles,
    text,
    vision,
)
from .llava import CLIP, Llava
from .tiles import PER_TILE, Idefics3, InternVL


class Cohere2Vision(InternVL, key="cohere2_vision"):
    """Tiles as in Aya Vision, with a break behind each."""

    brief = True
    model: Any = Cohere2VisionForConditionalGeneration
    film_shape: Any = None

    def config(self, window: int = 512, **variant: Any) -> Any:
        words = text("cohere2", sliding_window=window, logit_scale=1.0)
        own: dict[str, Any] = {"image_token_id": IMAGE, "downsample_factor": 2, "alignment_intermediate_size": 48}
        own |= {"vision_config": vision("siglip_vision_model", 4), "text_config": words, "tie_word_embeddings": False}
        return Cohere2VisionConfig(**{**own, **variant})

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        tokens = [START, *([IMAGE] * PER_TILE + [NEWLINE]) * tiles, END]
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE)})


class QianfanOCR(InternVL, key="qianfan_ocr"):
    """As InternVL, on Qwen3."""

    brief = True
    model: Any = QianfanOCRForConditionalGeneration
    film_shape: Any = None

    def config(self, **variant: Any) -> Any:
        tower = vision("qianfan_ocr_vision", 4, layer_scale_init_value=0.7, image_size=[SIDE] * 2)
        tower["patch_size"] = [4, 4]
        own = {"vision_config": tower, "text_config": text("qwen3"), "image_token_id": IMAGE}
        return QianfanOCRConfig(**{**own, "image_seq_length": PER_TILE, "tie_word_embeddings": False, **variant})


class VipLlava(Llava, key="vipllava"):
    """Two blocks of the tower side by side, without [CLS]."""

    brief = True
    model: Any = VipLlavaForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        own = {"vision_config": CLIP, "text_config": text("llama"), "image_token_index": IMAGE}
        layer = "vision_feature_layer" if hasattr(VipLlavaConfig(), "vision_feature_layer") else "vision_feature_layers"
        return VipLlavaConfig(**{**own, layer: [-1, -2], "tie_word_embeddings": False, **variant})


class DeepseekVL(Llava, key="deepseek_vl"):
    """A SigLIP tower, one token a patch."""

    brief = True
    model: Any = DeepseekVLForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        own = {"vision_config": vision("siglip_vision_model", vision_use_head=False), "text_config": text("llama")}
        return DeepseekVLConfig(**{**own, "image_token_id": IMAGE, "tie_word_embeddings": False, **variant})


class Janus(Llava, key="janus"):
    """As DeepSeek-VL, with parts beside that draw pictures."""

    brief = True
    model: Any = JanusForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        tower = vision("janus_vision_model", mlp_ratio=2.0, projection_dim=32, num_image_tokens=16)
        small = {"embed_dim": 4, "num_embeddings": 8, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
        wide = {"channel_multiplier": [1, 1], "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}
        own = {"vision_config": tower, "text_config": text("llama"), "vq_config": {**small, **wide}}
        return JanusConfig(**{**own, "image_token_id": IMAGE, "tie_word_embeddings": False, **variant})


class Ovis2(InternVL, key="ovis2"):
    """Tokens are mixtures of 27 visual words; five more stand for the indicators between tiles."""

    brief = True
    model: Any = Ovis2ForConditionalGeneration
    film_shape: Any = None

    def config(self, **variant: Any) -> Any:
        tower = vision("ovis2_vision", 4, vocab_size=32, hidden_stride=2, num_visual_indicator_tokens=5)
        own = {"vision_config": tower, "text_config": text("qwen2"), "vocab_size": VOCAB, "hidden_size": 32}
        ids = {"image_token_id": IMAGE, "visual_indicator_token_ids": [START, END, NEWLINE, TILE, GLOBAL]}
        return Ovis2Config(**{**own, **ids, "tie_word_embeddings": False, **variant})

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        tokens = [START]
        for i in range(tiles):
            tokens += [IMAGE] * PER_TILE + [NEWLINE if i + 1 < tiles else END]
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(tiles, 3, SIDE, SIDE)})


class DeepseekVLHybrid(DeepseekVL, key="deepseek_vl_hybrid"):
    """A second tower sees every picture at twice the size, through windows; its features stand beside SigLIP's."""

    model: Any = DeepseekVLHybridForConditionalGeneration

    def config(self, **variant: Any) -> Any:
        sam = {"output_channels": 16, "window_size": 7, "global_attn_indexes": [1], "mlp_ratio": 2.0}
        second = {**vision("sam_vision_model", 4, depth=2), **sam, "image_size": 2 * SIDE, "num_attention_heads": 2}
        del second["intermediate_size"]
        first = vision("siglip_vision_model", vision_use_head=False)
        own = {"vision_config": first, "high_res_vision_config": second, "text_config": text("llama")}
        return DeepseekVLHybridConfig(**{**own, "image_token_id": IMAGE, "tie_word_embeddings": False, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        piece = super().picture(config, shape, alone, draw)
        piece.payload["high_res_pixel_values"] = draw.pixels(1, 3, 2 * SIDE, 2 * SIDE)
        return piece

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return super().collate(samples, case, config) | gather(samples, "high_res_pixel_values")


class GraniteDocling(Idefics3, key="granite_docling"):
    """4 x 4 cells make a token; features of two blocks more join the first two decoder layers."""

    brief = True
    model: Any = getattr(transformers, "GraniteDoclingForConditionalGeneration", None)
    fine: ClassVar[bool] = False

    def config(self, **variant: Any) -> Any:
        tower = vision("granite_docling_vision", 4, out_hidden_size=32, scale_factor=4, deepstack_visual_indexes=[0, 2])
        scales: dict[str, Any] = {"attention_multiplier": 0.35, "embedding_multiplier": 1.0, "logits_scaling": 1.0}
        words = text("granite_docling_text", **scales, residual_multiplier=1.0)
        own = {"vision_config": tower, "text_config": words, "image_token_id": IMAGE, "pad_token_id": PAD}
        return transformers.GraniteDoclingConfig(**{**own, "tie_word_embeddings": False, **variant})

    def picture(self, config: Any, tiles: Any, alone: bool, draw: Draw) -> Piece:
        piece, per_tile = super().picture(config, tiles, alone, draw), PER_TILE if self.fine else PER_TILE // 4
        tokens: list[int] = []
        for token in piece.tokens:
            tokens += [token] if tokens[-per_tile:] != [IMAGE] * per_tile or token != IMAGE else []
        return Piece("image", tokens, IMAGE, {"pixel_values": piece.payload["pixel_values"]})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        """Tiles per sample, filled up with empty ones, and which of them are real."""
        rows = [[piece.payload["pixel_values"] for piece in pieces] for pieces in samples]
        counts = [sum(map(len, own)) for own in rows]
        if not any(counts):
            return {}
        pixels = stack_tiles([torch.cat([torch.zeros(0, 3, SIDE, SIDE), *own]) for own in rows])
        real = torch.arange(pixels.shape[1]) < torch.tensor(counts)[:, None]
        finer = {"tile_fine_mask": torch.ones(len(rows), dtype=torch.bool)} if self.fine else {}
        return {"pixel_values": pixels, "pixel_attention_mask": real, **finer}


class GraniteDoclingFine(GraniteDocling, key="granite_docling_fine"):
    """The fine route: 2 x 2 cells make a token."""

    fine = True
