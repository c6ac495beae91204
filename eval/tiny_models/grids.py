"""One grid of tokens per tile, as in InternVL or LLaVA: Command A Vision, VipLLaVA, Qianfan-OCR, DeepSeek-VL, Janus, Ovis2."""

from __future__ import annotations

from typing import Any

from transformers import (
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from .common import END, GLOBAL, IMAGE, NEWLINE, SIDE, START, TILE, VOCAB, Draw, Piece, text, vision
from .llava import CLIP, Llava
from .tiles import PER_TILE, InternVL


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
        return VipLlavaConfig(**{**own, "vision_feature_layer": [-1, -2], "tie_word_embeddings": False, **variant})


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
