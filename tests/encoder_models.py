"""Vision encoders of timm, transformers and open_clip, small and with weights that matter."""

from __future__ import annotations

import pytest
import timm
import torch
from models import vision
from torch import nn
from transformers import AutoConfig, AutoModel

TOLERANCE = 2e-5  # float32, two orders of the same additions

TIMM = {
    "plain": ("vit_tiny_patch16_224", {}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "dinov2_reg": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "mae_pool": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "avg_with_cls": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": True}),
    "siglip_map": ("vit_base_patch16_siglip_224", {}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva_fused": ("eva02_base_patch14_224", {"swiglu_mlp": False, "scale_mlp": False, "qkv_fused": True}),
    "no_fused_attention": ("vit_tiny_patch16_224", {}),
}


def timm_model(name: str) -> nn.Module:
    arch, more = TIMM[name]
    torch.manual_seed(0)
    patch = 14 if "14" in arch else 16
    model = timm.create_model(
        arch, pretrained=False, img_size=4 * patch, depth=4, embed_dim=48, num_heads=4, num_classes=7, **more
    ).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    for block in model.blocks:
        block.attn.fused_attn = name != "no_fused_attention"
    return model


def transformers_model(kind: str) -> nn.Module:
    if kind in ("clip", "siglip"):
        config = AutoConfig.for_model(**vision(kind))
    else:
        more = {"num_register_tokens": 3} if "registers" in kind else {}
        common = {
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
        }
        config = AutoConfig.for_model(kind, intermediate_size=40, **common, **more)
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    return model


def open_clip_model(timm_backed: bool) -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 12}
    if timm_backed:
        tower = {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "token",
            "timm_proj": "linear",
        }
    torch.manual_seed(0)
    vocabulary = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=12, vision_cfg=tower, text_cfg=vocabulary).eval()
