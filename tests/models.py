"""Tiny random models of the real transformers classes, and inputs for them."""

from __future__ import annotations

import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration

TRANSFORMERS = tuple(map(int, transformers.__version__.split(".")[:2]))
IMAGE_TOKEN = 3
VOCAB = 61


def vision(kind: str = "clip", grid: int = 4, depth: int = 4) -> dict:
    return {
        "model_type": f"{kind}_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": depth,
        "num_attention_heads": 3,
        "image_size": 8 * grid,
        "patch_size": 8,
        "projection_dim": 24,
    }


def text(kind: str = "llama", depth: int = 5) -> dict:
    more = {"head_dim": 8} if kind in ("llama", "mistral") else {}
    if kind == "mistral":
        more["sliding_window"] = None
    return {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def llava(
    tower: str = "clip",
    lm: str = "llama",
    attention: str = "sdpa",
    grid: int = 4,
    strategy: str | None = None,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """A tiny LLaVA whose weights are large enough that outputs depend on every token."""
    config = LlavaConfig(
        vision_config=vision(tower, grid),
        text_config=text(lm),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy=strategy or ("default" if tower == "clip" else "full"),
        vision_feature_layer=-2,
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.25 if "embed" not in name else 0.6)
        model.lm_head.weight[IMAGE_TOKEN] = 0  # a random model must not write images
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def tokens_per_image(model) -> int:
    vision_config = model.config.vision_config
    n = (vision_config.image_size // vision_config.patch_size) ** 2
    extra = 1 if vision_config.model_type == "clip_vision_model" else 0
    return n + extra - (1 if model.config.vision_feature_select_strategy == "default" else 0)


def prompt(model, images: list[int], pad: str | None = None, seed: int = 0) -> dict:
    """Inputs for a batch: sample b holds ``images[b]`` images; ``pad`` is left, right, or None for equal lengths."""
    generator = torch.Generator().manual_seed(seed)
    n = tokens_per_image(model)
    rows = []
    for b, count in enumerate(images):
        row = [1]
        for i in range(count):
            row += torch.randint(4, VOCAB, (2 + i,), generator=generator).tolist() + [IMAGE_TOKEN] * n
        row += torch.randint(4, VOCAB, (4 + (b if pad else 0),), generator=generator).tolist()
        rows.append(row)
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        span = slice(width - len(row), width) if pad != "right" else slice(0, len(row))
        ids[b, span], mask[b, span] = torch.tensor(row), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if sum(images):
        side = model.config.vision_config.image_size
        inputs["pixel_values"] = torch.randn(sum(images), 3, side, side, generator=generator)
    return inputs
