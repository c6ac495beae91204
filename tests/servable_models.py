"""Random models of real classes, saved with a tokenizer and a processor, small enough for a server on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SPECIAL = ("<pad>", "<eos>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
WORDS = tuple(f"w{i}" for i in range(40))
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*SPECIAL, "<unk>", *WORDS))}, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[2:]),
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def save_qwen(kind: str, folder: Path) -> Path:
    """A random model of the type ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl`` in ``folder``."""
    import transformers as t

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    name = names[kind]
    words = {
        "model_type": f"{kind}_text",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }
    patch = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "depth": 4}
    if kind == "qwen2_vl":
        tower = {**patch, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
    elif kind == "qwen3_vl":
        words |= {"head_dim": 32}
        words["rope_parameters"] |= {"mrope_interleaved": True}
        tower = {**patch, "patch_size": 16, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2}
        tower |= {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    else:
        windows = {"window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
        tower = {**patch, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64, **windows}
    ids = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    config = getattr(t, f"{name}Config")(vision_config=tower, text_config=words, tie_word_embeddings=False, **ids)
    torch.manual_seed(7)
    model = getattr(t, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():  # larger than at the start of a training, so that pictures matter
            if weight.ndim > 1:
                weight.normal_(0, 0.12 if "visual" in key else 0.25)
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256}, "patch_size": tower["patch_size"]}
    videos = t.Qwen3VLVideoProcessor if kind == "qwen3_vl" else t.Qwen2VLVideoProcessor
    processor = getattr(t, f"{name}Processor")(t.Qwen2VLImageProcessor(**sizes), tokenizer(), videos(**sizes))
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Blocks of colour on noise."""
    draw = np.random.default_rng(seed)
    made = draw.integers(0, 60, (height, width, 3))
    for _ in range(4):
        y, x = draw.integers(0, height - 20), draw.integers(0, width - 20)
        made[y : y + 20, x : x + 28] = draw.integers(80, 255, 3)
    return Image.fromarray(made.astype(np.uint8))


def film(seed: int, frames: int, width: int, height: int) -> np.ndarray:
    """(frames, height, width, 3) uint8: one picture, in which a block moves."""
    made = np.stack([np.asarray(picture(seed, width, height))] * frames)
    for i in range(frames):
        made[i, 10:24, 4 * i : 4 * i + 14] = 220
    return made
