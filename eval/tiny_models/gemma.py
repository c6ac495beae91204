"""Gemma3, PaliGemma and PaliGemma 2: attention both ways among image tokens, or within the whole prompt."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from .common import BOS, END, IMAGE, NEWLINE, SIDE, START, Case, Draw, Piece, TinyFamily, gather, text, vision


class Gemma3(TinyFamily, key="gemma3"):
    """8 x 8 cells averaged to 16 tokens; layers 0, 1, 3, 4 look through a sliding window."""

    model: Any = Gemma3ForConditionalGeneration
    shapes = [(SIDE, SIDE)] * 3

    def config(self, window: int = 512, **variant: Any) -> Any:
        words = text("gemma3_text", sliding_window=window, query_pre_attn_scalar=8, sliding_window_pattern=3)
        own = {"mm_tokens_per_image": 16, "boi_token_index": START, "eoi_token_index": END, "image_token_index": IMAGE}
        tower = vision("siglip_vision_model", 4, vision_use_head=False)
        return Gemma3Config(
            **{"vision_config": tower, "text_config": words, "tie_word_embeddings": False, **own, **variant}
        )

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [NEWLINE, START] + [IMAGE] * 16 + [END, NEWLINE]
        return Piece("image", tokens, IMAGE, {"pixel_values": draw.pixels(1, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return {"token_type_ids": (case.inputs["input_ids"] == IMAGE).long(), **gather(samples, "pixel_values")}


class PaliGemma(TinyFamily, key="paligemma"):
    """16 tokens per image, all images before the text; the prompt attends both ways (its token types are all 0)."""

    model: Any = PaliGemmaForConditionalGeneration
    shapes = [(SIDE, SIDE)] * 3

    def config(self, **variant: Any) -> Any:
        tower = vision("siglip_vision_model", vision_use_head=False)
        own = {"image_token_index": IMAGE, "projection_dim": 32, "hidden_size": 32, "tie_word_embeddings": False}
        return PaliGemmaConfig(**{"vision_config": tower, "text_config": text("gemma"), **own, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        return Piece("image", [IMAGE] * 16, IMAGE, {"pixel_values": draw.pixels(1, 3, SIDE, SIDE)})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return {"token_type_ids": case.inputs["input_ids"] * 0, **gather(samples, "pixel_values")}

    def row(self, pieces: list[Piece], tail: int, draw: Draw) -> tuple[list[int], list[int]]:
        tokens, owner = [], []
        for i, piece in enumerate(pieces):
            tokens += piece.tokens
            owner += [i] * len(piece.tokens)
        words = [BOS, *draw.words(tail), NEWLINE]
        return tokens + words, owner + [-1] * len(words)


class PaliGemma2(PaliGemma, key="paligemma2"):
    """On Gemma 2: every other layer has a sliding window, attention is soft-capped, hence never sdpa.

    Not the logits, which transformers caps in some versions only.
    """

    brief = True
    attention = {"sdpa": {"text_config": "eager", "vision_config": "sdpa"}}

    def config(self, window: int = 512, **variant: Any) -> Any:
        caps: dict[str, Any] = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": None}
        words = text("gemma2", sliding_window=window, query_pre_attn_scalar=8, **caps)
        return super().config(**{"text_config": words, **variant})
