"""Postcard: SigLIP's patches, averaged two by two, through a linear layer into Qwen3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import ModelOutput


class PostcardConfig(PreTrainedConfig):
    model_type = "postcard"
    sub_configs = {"eye_config": SiglipVisionConfig, "text_config": Qwen3Config}

    def __init__(self, eye_config: Any = None, text_config: Any = None, stamp_token_id: int = 3, **kwargs: Any) -> None:
        self.eye_config = SiglipVisionConfig(**(eye_config or {}))
        self.text_config = Qwen3Config(**(text_config or {}))
        self.stamp_token_id = stamp_token_id
        super().__init__(**kwargs)


class PostcardPreTrainedModel(PreTrainedModel):
    config_class = PostcardConfig
    base_model_prefix = "model"
    _supports_sdpa = True


class PostcardModel(PostcardPreTrainedModel):
    def __init__(self, config: PostcardConfig) -> None:
        super().__init__(config)
        self.eye = SiglipVisionModel(config.eye_config)
        self.bridge = nn.Linear(config.eye_config.hidden_size, config.text_config.hidden_size)
        self.language_model = Qwen3Model(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        rows = self.eye(pixel_values).last_hidden_state
        side = int(rows.shape[1] ** 0.5)
        pooled = F.avg_pool2d(rows.transpose(1, 2).unflatten(2, (side, side)), 2)
        return self.bridge(pooled.flatten(2).transpose(1, 2))

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        embeds = kwargs.pop("inputs_embeds", None)
        if embeds is None:
            embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            at = (input_ids == self.config.stamp_token_id)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(at, self.get_image_features(pixel_values).to(embeds.dtype))
        return self.language_model(inputs_embeds=embeds, **kwargs)


class PostcardForConditionalGeneration(PostcardPreTrainedModel, GenerationMixin):
    def __init__(self, config: PostcardConfig) -> None:
        super().__init__(config)
        self.model = PostcardModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.model.language_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> ModelOutput:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **kwargs)
        logits = self.lm_head(out[0][:, -logits_to_keep:])
        return ModelOutput(logits=logits, **{name: out[name] for name in list(out)[1:]})  # the cache under its own name

    def prepare_inputs_for_generation(self, *args: Any, pixel_values: Tensor | None = None, **kwargs: Any) -> dict:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        first = kwargs.get("is_first_iteration", True) or not kwargs.get("use_cache", True)
        return {**inputs, "pixel_values": pixel_values if first else None}


AutoConfig.register("postcard", PostcardConfig, exist_ok=True)


def tiny() -> PostcardForConditionalGeneration:
    """Random weights, a grid of 8 x 8 patches, 16 tokens a picture."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    words = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100, "max_position_embeddings": 256}
    config = PostcardConfig(
        eye_config={**small, "image_size": 32, "patch_size": 4, "vision_use_head": False},
        text_config={**small, **words, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    )
    model = PostcardForConditionalGeneration(config).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
    model.generation_config.eos_token_id = None
    return model
