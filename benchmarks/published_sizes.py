"""Models at the sizes of their config.json, written down by hand, each with a typical picture. No weights are needed.

Parameters, in billions as their model pages say, hold the sizes to account: ``model_savings.py`` counts them anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One model and one prompt.

    Attributes:
        name: where its config.json stands; ``parameters``: in billions; ``cls``: the class of transformers.
        picture: in words; ``tokens``: of it that methods see; ``others``: further placeholders (newlines, [CLS]).
        rows: per call of the tower's attention, the rows of each picture part; ``windows``: the same in window blocks.
        patches: that enter the tower; ``projected``: rows that the projector works on.
        tower: which tower runs; ``side``: of its pixels, where no block of it tells what it costs.
    """

    name: str
    parameters: float
    cls: str
    config: dict[str, Any]
    picture: str
    tokens: int
    others: int
    rows: list[int]
    patches: int
    projected: int
    windows: list[int] = field(default_factory=list)
    tower: int = 0
    side: int = 0


def words(
    kind: str, hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "pad_token_id": 0,
        **more,
    }


def clip(image: int = 336) -> dict[str, Any]:
    """CLIP ViT-L/14."""
    return {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": image, "patch_size": 14, "projection_dim": 768,
    }  # fmt: skip


def siglip(image: int, layers: int = 27, kind: str = "siglip_vision_model") -> dict[str, Any]:
    """SigLIP so400m/14."""
    return {
        "model_type": kind, "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": layers,
        "num_attention_heads": 16, "image_size": image, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip


def llava(text: dict[str, Any], tower: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"vision_config": tower or clip(), "text_config": text, "image_token_index": 3, **more}


LLAMA_7B = words("llama", 4096, 11008, 32, 32, 32, 32064)
QWEN2_7B = words("qwen2", 3584, 18944, 28, 28, 4, 152064)
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def qwen2_vl(text: tuple[int, ...], tied: bool, **more: Any) -> dict[str, Any]:
    hidden, mlp, layers, heads, kv, vocab = text
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": hidden, "mlp_ratio": 4, "patch_size": 14}
    return {
        "text_config": words("qwen2_vl_text", hidden, mlp, layers, heads, kv, vocab, tie_word_embeddings=tied),
        "vision_config": vision, "tie_word_embeddings": tied, **more,
    }  # fmt: skip


def qwen2_5_vl(text: tuple[int, ...], tied: bool) -> dict[str, Any]:
    hidden, mlp, layers, heads, kv, vocab = text
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": hidden,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    if hidden == 8192:
        vision["intermediate_size"] = 3456
    return {
        "text_config": words("qwen2_5_vl_text", hidden, mlp, layers, heads, kv, vocab, tie_word_embeddings=tied),
        "vision_config": vision, "tie_word_embeddings": tied,
    }  # fmt: skip


def qwen3_vl(text: dict[str, Any], small: bool = False) -> dict[str, Any]:
    sizes = (24, 1024, 4096, [5, 11, 17]) if small else (27, 1152, 4304, [8, 16, 24])
    vision = {
        "depth": sizes[0], "hidden_size": sizes[1], "intermediate_size": sizes[2], "num_heads": 16, "patch_size": 16,
        "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": sizes[3],
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": small}


def gemma3(hidden: int, mlp: int, layers: int, heads: int, kv: int, head_dim: int) -> dict[str, Any]:
    text = words("gemma3_text", hidden, mlp, layers, heads, kv, 262208, head_dim=head_dim, sliding_window=1024)
    return {"text_config": text, "vision_config": siglip(896), "mm_tokens_per_image": 256}


def windows_of(height: int, width: int, side: int = 4, unit: int = 4) -> list[int]:
    """Rows of each window of ``side`` x ``side`` units of ``unit`` patches on a grid of ``height`` x ``width`` units."""
    spans = [[min(side, n - i) for i in range(0, n, side)] for n in (height, width)]
    return [h * w * unit for h in spans[0] for w in spans[1]]


MOE = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "head_dim": 128}
QWEN_PICTURE = {"picture": "1008 x 756", "tokens": 972, "others": 2, "rows": [3888], "patches": 3888, "projected": 972}
QWEN3_PICTURE = {"picture": "1024 x 768", "tokens": 768, "others": 2, "rows": [3072], "patches": 3072, "projected": 768}
GEMMA_PICTURE = {
    "picture": "any, one crop",
    "tokens": 256,
    "others": 4,
    "rows": [4096],
    "patches": 4096,
    "projected": 256,
}
LLAVA_PICTURE = {"picture": "any", "tokens": 576, "others": 0, "rows": [577], "patches": 576, "projected": 576}
WINDOWS = windows_of(27, 36)
LLAMA_32 = words(
    "mllama_text_model", 4096, 14336, 40, 32, 8, 128256, cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38]
)
MLLAMA_TOWER = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8, "attention_heads": 16,
    "image_size": 560, "patch_size": 14, "max_num_tiles": 4, "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "vision_output_dim": 7680,
}  # fmt: skip
DAVIT = {"depths": [1, 1, 9, 1], "embed_dim": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64],
         "num_groups": [8, 16, 32, 64], "projection_dim": 1024}  # fmt: skip
BART_LARGE = {
    "model_type": "bart", "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "vocab_size": 51289,
    "max_position_embeddings": 4096,
}  # fmt: skip

SIZES = (
    Published("llava-hf/llava-1.5-7b-hf", 7.06, "LlavaForConditionalGeneration", llava(LLAMA_7B), **LLAVA_PICTURE),
    Published(
        "llava-hf/llava-1.5-13b-hf", 13.35, "LlavaForConditionalGeneration",
        llava(words("llama", 5120, 13824, 40, 40, 40, 32064)), **LLAVA_PICTURE,
    ),
    Published(
        "llava-hf/llava-v1.6-mistral-7b-hf", 7.57, "LlavaNextForConditionalGeneration",
        llava(words("mistral", 4096, 14336, 32, 32, 8, 32064, sliding_window=None), image_grid_pinpoints=PINPOINTS),
        "672 x 672, five views", 2880, 48, [577] * 5, 2880, 2880,
    ),
    Published(
        "llava-hf/LLaVA-NeXT-Video-7B-hf", 7.06, "LlavaNextVideoForConditionalGeneration",
        llava(LLAMA_7B, image_grid_pinpoints=PINPOINTS), "a video of 8 frames", 1152, 0, [577] * 8, 4608, 1152,
    ),
    Published(
        "LanguageBind/Video-LLaVA-7B-hf", 7.37, "VideoLlavaForConditionalGeneration",
        llava(LLAMA_7B, clip(224)), "a video of 8 frames", 2048, 8, [257] * 8, 2048, 2056, tower=1,
    ),
    Published(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.03, "LlavaOnevisionForConditionalGeneration",
        llava(QWEN2_7B, siglip(384, 26), image_grid_pinpoints=[[384, 384], [768, 768], [2304, 2304]],
              vision_feature_layer=-1, vision_feature_select_strategy="full"),
        "768 x 768, five views", 3645, 54, [729] * 5, 3645, 3645,
    ),
    Published("Qwen/Qwen2-VL-2B-Instruct", 2.21, "Qwen2VLForConditionalGeneration",
              qwen2_vl((1536, 8960, 28, 12, 2, 151936), True), **QWEN_PICTURE),
    Published("Qwen/Qwen2-VL-7B-Instruct", 8.29, "Qwen2VLForConditionalGeneration",
              qwen2_vl((3584, 18944, 28, 28, 4, 152064), False), **QWEN_PICTURE),
    Published("Qwen/Qwen2.5-VL-3B-Instruct", 3.75, "Qwen2_5_VLForConditionalGeneration",
              qwen2_5_vl((2048, 11008, 36, 16, 2, 151936), True), **QWEN_PICTURE, windows=WINDOWS),
    Published("Qwen/Qwen2.5-VL-7B-Instruct", 8.29, "Qwen2_5_VLForConditionalGeneration",
              qwen2_5_vl((3584, 18944, 28, 28, 4, 152064), False), **QWEN_PICTURE, windows=WINDOWS),
    Published("Qwen/Qwen2.5-VL-72B-Instruct", 73.4, "Qwen2_5_VLForConditionalGeneration",
              qwen2_5_vl((8192, 29568, 80, 64, 8, 152064), False), **QWEN_PICTURE, windows=WINDOWS),
    Published("Qwen/Qwen3-VL-4B-Instruct", 4.44, "Qwen3VLForConditionalGeneration",
              qwen3_vl(words("qwen3_vl_text", 2560, 9728, 36, 32, 8, 151936, head_dim=128, tie_word_embeddings=True), True),
              **QWEN3_PICTURE),
    Published("Qwen/Qwen3-VL-8B-Instruct", 8.77, "Qwen3VLForConditionalGeneration",
              qwen3_vl(words("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936, head_dim=128)), **QWEN3_PICTURE),
    Published("Qwen/Qwen3-VL-30B-A3B-Instruct", 31.07, "Qwen3VLMoeForConditionalGeneration",
              qwen3_vl(words("qwen3_vl_moe_text", 2048, 6144, 48, 32, 4, 151936, **MOE)), **QWEN3_PICTURE),
    Published(
        "OpenGVLab/InternVL3-8B-hf", 7.94, "InternVLForConditionalGeneration",
        {"text_config": words("qwen2", 3584, 18944, 28, 28, 4, 151674), "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
         "tie_word_embeddings": False},
        "896 x 896, four tiles and a thumbnail", 1280, 2, [1025] * 5, 5120, 1280,
    ),
    Published("google/gemma-3-4b-it", 4.30, "Gemma3ForConditionalGeneration",
              gemma3(2560, 10240, 34, 8, 4, 256), **GEMMA_PICTURE),
    Published("google/gemma-3-12b-it", 12.19, "Gemma3ForConditionalGeneration",
              gemma3(3840, 15360, 48, 16, 8, 256), **GEMMA_PICTURE),
    Published("google/gemma-3-27b-it", 27.43, "Gemma3ForConditionalGeneration",
              gemma3(5376, 21504, 62, 32, 16, 128), **GEMMA_PICTURE),
    Published(
        "google/paligemma2-3b-pt-448", 3.03, "PaliGemmaForConditionalGeneration",
        {"text_config": words("gemma2", 2304, 9216, 26, 8, 4, 257216, head_dim=256), "vision_config": siglip(448),
         "projection_dim": 2304, "hidden_size": 2304, "image_token_index": 3},
        "any", 1024, 0, [1024], 1024, 1024,
    ),
    Published(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.25, "SmolVLMForConditionalGeneration",
        {"text_config": words("llama", 2048, 8192, 24, 32, 32, 49280),
         "vision_config": siglip(384, kind="smolvlm_vision"), "scale_factor": 3, "image_token_id": 3},
        "1536 x 1152, twelve tiles and the whole", 1053, 26, [729] * 13, 9477, 1053,
    ),
    Published(
        "HuggingFaceM4/Idefics3-8B-Llama3", 8.46, "Idefics3ForConditionalGeneration",
        {"text_config": words("llama", 4096, 14336, 32, 32, 8, 128259),
         "vision_config": siglip(364, kind="idefics3_vision"), "scale_factor": 2, "image_token_id": 3},
        "1456 x 1092, twelve tiles and the whole", 2197, 26, [676] * 13, 8788, 2197,
    ),
    Published(
        "CohereLabs/aya-vision-8b", 8.63, "AyaVisionForConditionalGeneration",
        {"text_config": words("cohere2", 4096, 14336, 32, 32, 8, 256000, sliding_window=4096, head_dim=128),
         "vision_config": siglip(364), "downsample_factor": 2, "alignment_intermediate_size": 28672,
         "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        "728 x 728, four tiles and a thumbnail", 845, 10, [676] * 5, 3380, 845,
    ),
    Published(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 24.01, "Mistral3ForConditionalGeneration",
        {"text_config": words("mistral", 5120, 32768, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
         "vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}, "tie_word_embeddings": False},
        "1008 x 756", 972, 27, [3888], 3888, 972,
    ),
    Published(
        "meta-llama/Llama-3.2-11B-Vision-Instruct", 10.67, "MllamaForConditionalGeneration",
        {"text_config": LLAMA_32, "vision_config": MLLAMA_TOWER}, "1120 x 1120, four tiles", 6400, 4, [4 * 1608], 6400, 6404,
    ),
    Published(
        "florence-community/Florence-2-large", 0.77, "Florence2ForConditionalGeneration",
        {"text_config": BART_LARGE, "vision_config": DAVIT, "image_token_id": 3}, "768 x 768", 576, 1, [], 0, 577, side=768,
    ),
)  # fmt: skip
