"""Nemotron-H Omni: a packed C-RADIO, steps of videos as a batch; scans, attention, mixtures and MLPs as layers of their own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import CLOCK, END, IMAGE, START, TILE, VIDEO, Case, Draw, Piece, TinyFamily, gather, text

PATCH = 4


class NemotronHOmni(TinyFamily, key="nemotron_h_omni"):
    """Sizes in tokens (down, across) of 2 x 2 patches; a video is (steps of two frames, down, across)."""

    model: Any = getattr(transformers, "NemotronH_Omni_Reasoning_V3", None)
    since = (5, 24)  # videos come in steps of frames
    shapes = [(4, 4), (2, 6), (4, 3)]
    film_shape: Any = (3, 2, 3)
    brief = True
    apart = "placeholders of both have one id"

    def config(self, **variant: Any) -> Any:
        kinds = ["linear_attention", "full_attention", "moe", "full_attention", "mlp", "full_attention"]
        scan: dict[str, Any] = {
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
        }
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        words = text("nemotron_h", layers_block_type=kinds, **scan, **experts, moe_shared_expert_intermediate_size=16)
        del words["num_hidden_layers"]
        tower: dict[str, Any] = {
            "model_type": "radio",
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
        }
        tower |= {"patch_size": PATCH, "image_size": 32, "max_img_size": 32, "num_cls_tokens": 2, "num_registers": 1}
        tower |= {"summary_idxs": [0, 1], "video_temporal_patch_size": 2}
        own = {"vision_config": tower, "text_config": words, "projector_hidden_size": 40, "vision_hidden_size": 24}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": TILE}
        return transformers.NemotronH_Omni_Reasoning_V3_Config(**{**own, **ids, **variant})

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        down, across = (2 * side for side in shape)
        pixels = draw.pixels(down * across, 3 * PATCH**2)
        seen = {"pixel_values": pixels, "image_grid_hw": torch.tensor([[down, across]])}
        return Piece("image", [START] + [IMAGE] * (shape[0] * shape[1]) + [END], IMAGE, seen)

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        steps, down, across = shape
        tokens: list[int] = []
        for _ in range(steps):
            tokens += [CLOCK, *draw.words(1), START] + [IMAGE] * (down * across) + [END]
        pixels = draw.pixels(1, steps, 6, 2 * PATCH * down, 2 * PATCH * across)
        return Piece("video", tokens, IMAGE, {"pixel_values_videos": pixels})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return {
            k: x
            for name in ("pixel_values", "image_grid_hw", "pixel_values_videos")
            for k, x in gather(samples, name).items()
        }
