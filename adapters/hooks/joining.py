"""The hooks for where a family's pictures join its text."""

from __future__ import annotations

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.cross_attention import CrossAttentionHooks
from tokenreduce.adapters.hooks.model_hooks import ModelHooks
from tokenreduce.adapters.hooks.text_encoder import TextEncoderHooks
from tokenreduce.adapters.hooks.vision_language_model import VisionLanguageHooks
from tokenreduce.adapters.visual_inputs import Join

HOOKS: dict[Join, type[ModelHooks]] = {
    "sequence": VisionLanguageHooks,
    "text_encoder": TextEncoderHooks,
    "cross_attention": CrossAttentionHooks,
}


def hooks_for(family: Family) -> type[ModelHooks]:
    return HOOKS[family.pictures_join]
