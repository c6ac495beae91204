"""The demo model before training: configuration, tokenizer, processor, random weights; no download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .scene_questions import NUMBERS
from .scenes import CLASSES, COLOR_NAMES, PATCH, SIDE

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    *(
        "user",
        "assistant",
        ":",
        "?",
        "what",
        "which",
        "where",
        "how",
        "many",
        "is",
        "are",
        "there",
        "the",
        "a",
        "an",
    ),
    *(
        "color",
        "shape",
        "character",
        "objects",
        "shapes",
        "characters",
        "yes",
        "no",
        "top",
        "bottom",
        "left",
        "right",
    ),
    *NUMBERS,
    *COLOR_NAMES,
    *(name for name in CLASSES),
)
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
PAD, BOS, EOS, UNK, IMAGE = range(5)

# Accepts a plain string or a list of parts as content; pictures come where their parts are.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or part['type'] == 'image_url' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PROMPT = "USER: <image>\n{question} ASSISTANT:"


def word_ids(text: str) -> list[int]:
    """Token ids of a text without special tokens: the tokenizer's rule, written out for speed in training."""
    return [VOCABULARY.get(word, UNK) for word in re.findall(r"\w+|[^\w\s]+", text.lower())]


def build_processor() -> LlavaProcessor:
    """Lower-casing word-level tokenizer, CLIP pictures of 168 x 168, left padding, a LLaVA chat template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """LLaVA with random float32 weights: CLIP tower (6 blocks) and Llama (4 layers, heads of 64), width 128.

    Heads wider than width / heads leave enough slow rotary pairs for matching by content. In every Llama
    layer the key projection starts as a copy of the query projection, so a word attends to tokens like it
    from the first step.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        image_size=SIDE, patch_size=PATCH, hidden_size=128, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, hidden_act="gelu", projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=2048,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default", projector_hidden_act="gelu", image_seq_length=144,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.normal_(std=0.08)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    model.generation_config.update(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=4)
    return model


def save(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Write config, processor and float16 weights into ``folder``.

    Tower keys keep the older ``vision_tower.vision_model.`` layout: transformers 5 reads both,
    vLLM 0.32 only this one.
    """
    import json

    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(architectures=["LlavaForConditionalGeneration"], dtype="float16")
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "float16"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(_shipped_state(model), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _shipped_state(model: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    import torch

    state = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("model.")
        if key.startswith("vision_tower."):
            key = "vision_tower.vision_model." + key.removeprefix("vision_tower.").removeprefix("vision_model.")
        elif key.startswith("language_model."):
            key = "language_model.model." + key.removeprefix("language_model.")
        elif key.startswith("lm_head."):
            key = "language_model." + key
        state[key] = value.detach().to(torch.float16).contiguous()
    return state
