"""Random models of real classes, saved with a tokenizer and a processor, small enough for a server on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

SPECIAL = ("<pad>", "<eos>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
NAMES = ("image_token", "video_token", "start_image_token", "end_image_token")  # of the last four
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
        extra_special_tokens={**dict(zip(NAMES, SPECIAL[2:])), "context_image_token": SPECIAL[2]},
    )


WORDS_OF = {  # a language model of three layers
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
}
SIDE = 56  # pixels of a tile, where a tower has a fixed size
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TILE = {"height": SIDE, "width": SIDE}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def save(kind: str, folder: Path) -> Path:
    """A random model of the type ``kind`` in ``folder``."""
    make = {"llava_next": llava_next, "llava_onevision": llava_onevision, "internvl": internvl}.get(kind)
    model, processor = qwen(kind) if make is None else make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind.startswith("llava"):  # published weights, and vLLM, have the tower's older names; transformers reads both
        file = folder / "model.safetensors"
        weights = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    return folder


def filled(name: str, config: Any) -> Any:
    """A model with weights larger than at the start of a training, so that pictures matter."""
    import transformers as t

    torch.manual_seed(7)
    model = getattr(t, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 or key.endswith("image_newline"):
                weight.normal_(0, 0.12 if "vis" in key else 0.25)
    return model


def llava_next() -> tuple[Any, Any]:
    import transformers as t

    tower = {**TOWER, "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14, "projection_dim": 64}
    config = t.LlavaNextConfig(
        vision_config=tower,
        text_config={**WORDS_OF, "model_type": "llama"},
        image_token_index=2,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    images = t.LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=TILE, image_grid_pinpoints=PINPOINTS)
    processor = t.LlavaNextProcessor(images, tokenizer(), 14, "default", num_additional_image_tokens=1)
    return filled("LlavaNext", config), processor


def llava_onevision() -> tuple[Any, Any]:
    import transformers as t

    tower = {**TOWER, "model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": 14}
    config = t.LlavaOnevisionConfig(
        vision_config=tower | {"vision_use_head": False},
        text_config={**WORDS_OF, "model_type": "qwen2"},
        image_token_index=2,
        video_token_index=3,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    images = t.LlavaOnevisionImageProcessor(size=TILE, image_grid_pinpoints=PINPOINTS)
    processor = t.LlavaOnevisionProcessor(
        images, tokenizer(), t.LlavaOnevisionVideoProcessor(size=TILE), (SIDE // 14) ** 2, "full"
    )
    return filled("LlavaOnevision", config), processor


def internvl() -> tuple[Any, Any]:
    import transformers as t

    tower = {**TOWER, "image_size": [SIDE, SIDE], "patch_size": [7, 7], "use_qk_norm": True, "norm_type": "layer_norm"}
    config = t.InternVLConfig(
        vision_config=tower | {"model_type": "internvl_vision", "layer_scale_init_value": 0.7},
        text_config={**WORDS_OF, "model_type": "qwen2"},
        image_token_id=2,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    images = t.GotOcr2ImageProcessor(size=TILE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = t.InternVLProcessor(images, tokenizer(), t.InternVLVideoProcessor(size=TILE), image_seq_length=16)
    return filled("InternVL", config), processor


def qwen(kind: str) -> tuple[Any, Any]:
    """Of the type ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``."""
    import transformers as t

    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    name, rope = names[kind], {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    words = {**WORDS_OF, "model_type": f"{kind}_text", "rope_parameters": rope}
    patch = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3, "depth": 4}
    if kind == "qwen2_vl":
        tower = {**patch, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
    elif kind == "qwen3_vl":
        words |= {"head_dim": 32, "rope_parameters": {**rope, "mrope_interleaved": True}}
        tower = {**patch, "patch_size": 16, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2}
        tower |= {"out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    else:
        windows = {"window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
        tower = {**patch, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64, **windows}
    ids = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    config = getattr(t, f"{name}Config")(vision_config=tower, text_config=words, tie_word_embeddings=False, **ids)
    sizes = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256}, "patch_size": tower["patch_size"]}
    videos, images = t.Qwen2VLVideoProcessor(**sizes), t.Qwen2VLImageProcessor(**sizes)
    if kind == "qwen3_vl":  # vLLM divides pixels of both by what images are divided by
        videos, images = t.Qwen3VLVideoProcessor(**sizes), t.Qwen2VLImageProcessor(**sizes, **HALF)
    made = getattr(t, f"{name}Processor")(images, tokenizer(), videos)
    return filled(name, config), made


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
