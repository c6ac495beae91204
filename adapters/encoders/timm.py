"""Vision transformers of timm."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import EvaBlock, TimmBlock


class TimmEncoder(EncoderFamily):
    model_types = ("timm",)
    remarks = "VisionTransformer (plain, DeiT, DINOv2 with registers, MAE pooling, q/k norm), Eva (EVA, EVA02)"

    @classmethod
    def serves(cls, model: Any) -> bool:
        return type(model).__module__.startswith("timm.models")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        kinds = {"Block": TimmBlock, "EvaBlock": EvaBlock}
        blocks = list(getattr(model, "blocks", []))
        found = {type(block).__name__ for block in blocks}
        if not blocks or not found <= set(kinds):
            raise ValueError(
                f"timm model {type(model).__name__} has blocks of type {sorted(found) or 'unknown'}; allowed: "
                f"{', '.join(kinds)}, in which attention and MLP follow one another on one sequence of tokens. Windowed, "
                "hierarchical and parallel blocks have no place between the two where tokens could be merged."
            )
        patch = getattr(model, "patch_embed", None)
        dynamic = getattr(patch, "dynamic_img_pad", False) or not getattr(patch, "strict_img_size", True)
        self.blocks = [kinds[type(block).__name__](block) for block in blocks]
        self.grid = None if dynamic else tuple(getattr(patch, "grid_size", None) or ()) or None
        self.prefix = model.num_prefix_tokens
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.has_distillation = getattr(model, "dist_token", None) is not None
        if getattr(getattr(model, "patch_drop", None), "prob", 0.0) and model.training:
            raise ValueError("patch_drop_rate drops patches while training; call model.eval() first or set it to 0")
