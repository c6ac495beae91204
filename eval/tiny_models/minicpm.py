"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: a packed tower with a merger half-way, a Qwen3.5 decoder."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import END, IMAGE, START, VIDEO, Case, Draw, Piece, TinyFamily, gather, text
from .qwen import rope

PATCH = 4


class MiniCPMV4_6(TinyFamily, key="minicpmv4_6"):
    """Shapes in tokens (rows, columns), of ``unit`` x ``unit`` patches; a video is (frames, rows, columns)."""

    model: Any = getattr(transformers, "MiniCPMV4_6ForConditionalGeneration", None)
    since = (5, 19)
    kind = "MiniCPMV4_6Config"
    brief = True
    unit = 4
    shapes = [(3, 4), (2, 4), (3, 2)]
    film_shape: Any = (2, 2, 2)

    def config(self, **variant: Any) -> Any:
        linear: dict[str, Any] = {f"linear_{name}": n for name, n in (("num_key_heads", 2), ("num_value_heads", 4))}
        linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
        kinds = ["full_attention"] * 3 + ["linear_attention", "full_attention"]
        axes = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
        words = text("qwen3_5_text", **linear, layer_types=kinds, **axes) | {"head_dim": 16}
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
        tower |= {"num_hidden_layers": 4, "image_size": 32, "patch_size": PATCH, "insert_layer_id": 1}
        own = {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 1, "tie_word_embeddings": False}
        made = getattr(transformers, self.kind)
        return made(**{"vision_config": tower, "text_config": words, **own, **variant})

    def seen(self, shapes: list[Any], placeholder: int, draw: Draw) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """Tokens, pixels (1, 3, 4, 4 * patches) and sizes in patches (M, 2) of pictures."""
        sizes = torch.tensor([[self.unit * h, self.unit * w] for h, w in shapes], dtype=torch.int32)
        tokens = [token for h, w in shapes for token in (START, *[placeholder] * (h * w), END)]
        return tokens, draw.pixels(1, 3, PATCH, PATCH * int(sizes.prod(dim=1).sum())), sizes

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        tokens, pixels, sizes = self.seen([shape], IMAGE, draw)
        return Piece("image", tokens, IMAGE, {"pixel_values": pixels, "target_sizes": sizes})

    def film(self, config: Any, shape: Any, draw: Draw) -> Piece:
        tokens, pixels, sizes = self.seen([shape[1:]] * shape[0], VIDEO, draw)
        return Piece("video", tokens, VIDEO, {"pixel_values_videos": pixels, "target_sizes_videos": sizes})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = gather(samples, "target_sizes") | gather(samples, "target_sizes_videos")
        for name in ("pixel_values", "pixel_values_videos"):
            out |= gather(samples, name, lambda found: torch.cat(found, dim=3))
        return out


class MiniCPMV4_7(MiniCPMV4_6, key="minicpmv4_7"):
    """Positions on three axes."""

    model: Any = getattr(transformers, "MiniCPMV4_7ForConditionalGeneration", None)
    kind = "MiniCPMV4_7Config"

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        ids = case.inputs["input_ids"]
        return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()} | super().collate(
            samples, case, config
        )


class MiniCPMOcr(MiniCPMV4_6, key="minicpm_ocr"):
    """Without the merger half-way."""

    model: Any = getattr(transformers, "MiniCPMOcrForConditionalGeneration", None)
    kind = "MiniCPMOcrConfig"
    unit = 2
