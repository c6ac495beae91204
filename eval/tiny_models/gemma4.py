"""Gemma 4: pictures of any size, padded to one number of patches; keys that later layers use again, or a mixture of experts."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)

from .common import CLOCK, END, GLOBAL, IMAGE, START, VIDEO, VOCAB, Case, Draw, Piece, TinyFamily, gather, text

PATCH, POOL = 4, 2
SOUND = GLOBAL
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": SOUND, "boi_token_id": START}
IDS |= {"eoi_token_id": END, "boa_token_id": START, "eoa_token_index": END}
# until 5.23 videos came with an axis of their own
FLAT = "num_frames_per_video" in inspect.signature(Gemma4ForConditionalGeneration.forward).parameters


class Gemma4(TinyFamily, key="gemma4"):
    """Sizes in tokens (down, across) of 2 x 2 patches; a video is (frames, down, across), each frame behind a time stamp.

    The last two of six layers use the keys of layers 2 and 3; every layer is given an input of its own per token.
    """

    model: Any = Gemma4ForConditionalGeneration
    shapes = [(4, 4), (2, 6), (3, 4)]
    film_shape: Any = (3, 2, 3) if FLAT else None
    brief = True
    words: dict[str, Any] = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}
    patch, pool = PATCH, POOL

    def config(self, window: int = 512, **variant: Any) -> Any:
        tower = {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "patch_size": PATCH,
            "pooling_kernel_size": POOL,
            "position_embedding_size": 32,
        }
        words = text("gemma4_text", **{**layers(6, window), **self.words})
        own = {"vision_config": tower, "text_config": words, "audio_config": None, "tie_word_embeddings": False}
        return Gemma4Config(**{**own, **IDS, **variant})

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        for name, p in model.named_parameters():
            if name.endswith("q_norm.weight"):  # the scale of attention, which these models leave at 1
                p.mul_(0.35)

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens = [START] + [IMAGE] * (shape[0] * shape[1]) + [END]
        pixels, places = self.patches(1, shape, draw)
        return Piece("image", tokens, IMAGE, {"pixel_values": pixels, "image_position_ids": places})

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens: list[int] = []
        for _ in range(shape[0]):
            tokens += [CLOCK, *draw.words(1), START] + [VIDEO] * (shape[1] * shape[2]) + [END]
        pixels, places = self.patches(shape[0], shape[1:], draw)
        frames = torch.tensor([shape[0]])
        seen = {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": frames}
        return Piece("video", tokens, VIDEO, seen)

    def patches(self, n: int, shape: tuple[int, int], draw: Draw) -> tuple[Tensor, Tensor]:
        """Patches (n, P, 3 * side * side) of pictures of ``shape``, and where each is (n, P, 2), as (x, y)."""
        down, across = (side * self.pool for side in shape)
        places = torch.cartesian_prod(torch.arange(down), torch.arange(across)).flip(1)
        return draw.pixels(n, down * across, 3 * self.patch**2).sigmoid(), places.expand(n, -1, -1).clone()

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        ids = case.inputs["input_ids"]
        out = {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
        for medium, places in (("pixel_values", "image"), ("pixel_values_videos", "video")):
            out |= gather(samples, medium, filled(0)) | gather(samples, f"{places}_position_ids", filled(-1))
        return out | gather(samples, "num_frames_per_video")


class Gemma4Moe(Gemma4, key="gemma4_moe"):
    """A mixture of experts; pictures attend both ways in layers with a sliding window."""

    words: dict[str, Any] = {
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCAB,
        "num_kv_shared_layers": 0,
        "use_bidirectional_attention": "vision",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }


class Gemma4Unified(Gemma4, key="gemma4_unified"):
    """No tower: a token is a patch of 8 x 8 pixels; pictures attend both ways in all layers."""

    model: Any = Gemma4UnifiedForConditionalGeneration
    listens = False
    patch, pool = 2 * PATCH, 1

    def config(self, window: int = 512, **variant: Any) -> Any:
        words = text("gemma4_unified_text", **layers(5, window))
        seen = {"patch_size": PATCH, "pooling_kernel_size": 2, "mm_embed_dim": 24, "mm_posemb_size": 16}
        own = {"vision_config": {**seen, "output_proj_dims": 24}, "text_config": words, "audio_config": None}
        return Gemma4UnifiedConfig(**{**own, "tie_word_embeddings": False, **IDS, **variant})


def layers(depth: int, window: int) -> dict[str, Any]:
    """Layers with a sliding window and heads of 8, and layers of full attention and heads of 16, which take turns."""
    kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(depth - 1)] + ["full_attention"]
    sizes = {"head_dim": 8, "global_head_dim": 16, "vocab_size_per_layer_input": VOCAB}
    return {"num_hidden_layers": depth, "layer_types": kinds, "sliding_window": window, **sizes}


def filled(value: int) -> Any:
    """Joins (n, P, ...) of different P, filled up behind with ``value``."""

    def join(found: list[Tensor]) -> Tensor:
        most = max(x.shape[1] for x in found)
        return torch.cat(
            [torch.cat([x, x.new_full((len(x), most - x.shape[1], *x.shape[2:]), value)], 1) for x in found]
        )

    return join
