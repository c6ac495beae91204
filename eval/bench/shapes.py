"""Real model classes at the widths people run, with random weights and as many layers as memory allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import demo

DEMO = "demo"
VOCABULARY = 1000  # instead of 32,000 or 152,000: embeddings and head are no part of what is compared
IMAGE, VIDEO, START, WORDS = 3, 4, 5, 20  # token ids; text from WORDS on
TEXT = 64  # tokens of text after the picture


@dataclass(frozen=True)
class Shape:
    """A model as published, and one prompt for it.

    Attributes:
        depth, tower_depth: layers as published.
        keep: what methods are asked for; tokens: visual tokens of the prompt; media: what they stand for.
        model: name of the transformers class; config: its arguments for some layers; pixels: tensors beside the prompt.
    """

    title: str
    depth: int
    tower_depth: int
    keep: float | int
    tokens: int
    model: str
    config: Callable[[int, int], dict[str, Any]]
    pixels: Callable[[], dict[str, Tensor]]
    media: str = "image"
    image_id: int = IMAGE
    vocabulary: int = VOCABULARY

    def build(self, layers: int, tower_layers: int, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
        """The model in evaluation mode.

        Errors: ``ValueError`` when this transformers has no such class or tokenreduce does not support it.
        """
        import transformers

        import tokenreduce as tr

        if self.model == DEMO:
            whole: Any = demo.load(dtype)[0]
            return whole.to(device).eval()

        cls = getattr(transformers, self.model, None)
        known = [row["model_type"] for row in tr.families()]
        if cls is None or cls.config_class.model_type not in known:
            missing = f"transformers {transformers.__version__} has no" if cls is None else "tokenreduce does not wrap"
            raise ValueError(
                f"{missing} {self.model}, which this shape is made of; allowed: a shape of {', '.join(known)}"
            )
        config = cls.config_class(**self.config(layers, tower_layers))
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                torch.manual_seed(0)
                model = cls(config).eval()
        finally:
            torch.set_default_dtype(before)
        model.set_attn_implementation(attention)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    def inputs(self, device: torch.device, dtype: torch.dtype, batch: int = 1) -> dict[str, Tensor]:
        """``batch`` prompts of the same words, each with a picture or video of its own: a few words, it, the question."""
        torch.manual_seed(0)
        place = self.image_id if self.media == "image" else VIDEO
        words = torch.randint(WORDS, self.vocabulary, (TEXT,)).tolist()
        ids = torch.tensor([[1, *words[:8], START, *[place] * self.tokens, *words[8:]]] * batch)
        seen = [self.pixels() for _ in range(batch)]
        pixels = {name: torch.cat([one[name] for one in seen]) for name in seen[0]}
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        if "mm_token_type_ids" in made:
            made["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
        return {name: (x.to(dtype) if x.is_floating_point() else x).to(device) for name, x in made.items()}


def words(kind: str, hidden: int, mlp: int, heads: int, kv_heads: int, layers: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
    limits = {"num_key_value_heads": kv_heads, "max_position_embeddings": 32768}
    return {"model_type": kind, **sizes, **ids, **limits, **more}


def clip(layers: int) -> dict[str, Any]:
    """CLIP ViT-L/14 at 336 pixels."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": layers}
    return {"model_type": "clip_vision_model", **sizes, "image_size": 336, "patch_size": 14, "projection_dim": 768}


def siglip(layers: int) -> dict[str, Any]:
    """SigLIP so400m/14 at 384 pixels."""
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": layers}
    return {"model_type": "siglip_vision_model", **sizes, "image_size": 384, "patch_size": 14, "vision_use_head": False}


def llava(layers: int, tower: int) -> dict[str, Any]:
    text = words("llama", 4096, 11008, 32, 32, layers)
    return {"vision_config": clip(tower), "text_config": text, "image_token_index": IMAGE}


def llava_next(layers: int, tower: int) -> dict[str, Any]:
    return {**llava(layers, tower), "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]}


def llava_onevision(layers: int, tower: int) -> dict[str, Any]:
    text = words("qwen2", 3584, 18944, 28, 4, layers)
    places = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    features = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    pinpoints = {"image_grid_pinpoints": [[384, 768], [768, 384], [768, 768]]}
    return {"vision_config": siglip(tower), "text_config": text, **places, **features, **pinpoints}


def qwen(layers: int, tower: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    full = [block for block in range(tower) if block % 8 == 7 or block == tower - 1]
    vision = {
        "depth": tower, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": full,
    }  # fmt: skip
    places = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": 6,
    }
    text = words("qwen2_5_vl_text", 3584, 18944, 28, 4, layers, rope_parameters=rope)
    return {"vision_config": vision, "text_config": text, **places}


def qwen_pixels() -> dict[str, Tensor]:
    grid = torch.tensor([[1, 72, 72]])
    return {
        "pixel_values": torch.randn(72 * 72, 3 * 2 * 14 * 14), "image_grid_thw": grid, "mm_token_type_ids": torch.empty(0)
    }  # fmt: skip


def demo_shape() -> Shape:
    """The built-in model, whole."""
    config = json.loads((demo.WEIGHTS / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    side = vision["image_size"]
    return Shape(
        "The built-in demo model", text["num_hidden_layers"], vision["num_hidden_layers"], 16,
        (side // vision["patch_size"]) ** 2, DEMO, lambda layers, tower: config,
        lambda: {"pixel_values": torch.randn(1, 3, side, side)},
        image_id=config["image_token_index"], vocabulary=text["vocab_size"],
    )  # fmt: skip


SHAPES = {
    DEMO: demo_shape(),
    "llava-1.5-7b": Shape(
        "LLaVA-1.5-7B, one image", 32, 24, 64, 576, "LlavaForConditionalGeneration", llava,
        lambda: {"pixel_values": torch.randn(1, 3, 336, 336)},
    ),
    "llava-next": Shape(
        "LLaVA-NeXT (Vicuna 7B), 672 x 672 pixels: 5 tiles with newlines", 32, 24, 320, 576 + 48 * 49,
        "LlavaNextForConditionalGeneration", llava_next,
        lambda: {"pixel_values": torch.randn(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])},
    ),
    "qwen2.5-vl-7b": Shape(
        "Qwen2.5-VL-7B, 1008 x 1008 pixels", 28, 32, 256, 1296, "Qwen2_5_VLForConditionalGeneration", qwen, qwen_pixels
    ),
    "llava-ov-video": Shape(
        "LLaVA-OneVision-7B, a video of 32 frames", 28, 26, 0.15, 32 * 196 + 1, "LlavaOnevisionForConditionalGeneration",
        llava_onevision, lambda: {"pixel_values_videos": torch.randn(1, 32, 3, 384, 384)}, media="video",
    ),
}  # fmt: skip
