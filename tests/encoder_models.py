"""Vision encoders of timm, transformers and open_clip, small and with weights that matter."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from models import vision
from torch import nn
from transformers import AutoConfig, AutoModel, MetaClip2VisionModel

import tokenreduce as tr

TOLERANCE = 2e-5  # float32, two orders of the same additions

METHODS = [tr.ToMe(keep=0.5), tr.PiToMe(keep=0.5), tr.PiToMe(keep=0.5, preset="llava")]
IDS = ["tome", "pitome", "pitome-llava"]

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
    "eva_clip": ("eva02_base_patch16_clip_224", {}),
    "aimv2": ("aimv2_large_patch14_224", {}),
    "intern": ("vit_intern300m_patch14_448", {"init_values": 0.3}),
    "no_fused_attention": ("vit_tiny_patch16_224", {}),
}


def timm_model(name: str) -> nn.Module:
    arch, more = TIMM[name]
    torch.manual_seed(0)
    patch = 14 if "14" in arch else 16
    model = timm.create_model(
        arch, pretrained=False, img_size=4 * patch, depth=4, embed_dim=48, num_heads=4, num_classes=7, **more
    ).eval()
    for block in model.blocks:
        block.attn.fused_attn = name != "no_fused_attention"
    return with_weights(model)


TRANSFORMERS = {
    "clip": ("clip_vision_model", {}),
    "siglip": ("siglip_vision_model", {}),
    "vit": ("vit", {}),
    "deit": ("deit", {}),
    "dinov2": ("dinov2", {}),
    "dinov2_with_registers": ("dinov2_with_registers", {"num_register_tokens": 3}),
    "dinov3": ("dinov3_vit", {"num_register_tokens": 3, "layerscale_value": 0.3}),
    "dinov3_gated": ("dinov3_vit", {"use_gated_mlp": True}),
    "aimv2": ("aimv2_vision_model", {}),
    "aimv2_native": ("aimv2_vision_model", {"is_native": True}),
    "ijepa": ("ijepa", {}),
    "internvl": ("internvl_vision", {"image_size": (32, 32), "patch_size": (8, 8), "layer_scale_init_value": 0.3}),
    "internvl_qk_norm": ("internvl_vision", {"image_size": (32, 32), "patch_size": (8, 8), "use_qk_norm": True}),
    "metaclip_2": ("metaclip_2_vision_model", {}),
    "vit_msn": ("vit_msn", {}),
}
INTERPOLATES = ("clip", "siglip", "vit", "deit", "ijepa", "metaclip_2", "vit_msn")  # where they are asked to


def transformers_model(kind: str) -> nn.Module:
    model_type, more = TRANSFORMERS[kind]
    config = AutoConfig.for_model(**vision() | {"model_type": model_type} | more)
    torch.manual_seed(0)
    made_by = MetaClip2VisionModel._from_config if kind == "metaclip_2" else AutoModel.from_config
    return with_weights(made_by(config, attn_implementation="sdpa").eval())


def whole_model(kind: str) -> nn.Module:
    """A model of pictures and texts."""
    sides = {"num_patches": 16} if kind == "siglip2" else {}
    words = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    words |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "projection_size": 24}
    config = AutoConfig.for_model(kind, vision_config=vision(kind) | sides, text_config=words, projection_dim=24)
    torch.manual_seed(0)
    return with_weights(AutoModel.from_config(config).eval())


def with_weights(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    return model


def torchvision_model(**more) -> nn.Module:
    vit = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 40}
    return with_weights(vit.VisionTransformer(**sizes, num_classes=7, **more).eval())


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


def small(name: str, **more) -> nn.Module:
    """Architecture ``name`` of timm with four narrow blocks and weights that matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, depth=4, embed_dim=48, num_heads=4, **more).eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.2)
    return model


def shaped(*grids: tuple[int, int], length: int) -> dict[str, torch.Tensor]:
    """Inputs of SigLIP 2 of any aspect: patches of one image per grid, padded to ``length``."""
    real = torch.arange(length) < torch.tensor([height * width for height, width in grids])[:, None]
    torch.manual_seed(1)
    patches = torch.randn(len(grids), length, 192)
    return {"pixel_values": patches, "pixel_attention_mask": real.long(), "spatial_shapes": torch.tensor(grids)}


#: towers of each library, by what a test calls them
TOWERS = {
    "timm": lambda: timm_model("plain"),
    "timm_registers": lambda: timm_model("dinov2_reg"),
    "siglip_map": lambda: timm_model("siglip_map"),
    "eva": lambda: timm_model("eva02"),
    **{kind: partial(transformers_model, kind) for kind in ("clip", "siglip", "dinov2", "dinov3", "vit")},
    "open_clip": lambda: open_clip_model(False).visual,
}


def tower(name: str, images: int) -> tuple[nn.Module, torch.Tensor]:
    """One of ``TOWERS``, and pixels (B, 3, height, width) of so many images for it."""
    torch.manual_seed(0)
    model = TOWERS[name]()
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (32, 32)
    return model, torch.randn(images, 3, *size)
