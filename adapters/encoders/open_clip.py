"""CLIP models of open_clip, and their vision towers."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import OpenClipBlock
from tokenreduce.adapters.encoders.timm import TimmEncoder


class OpenClipEncoder(EncoderFamily):
    model_types = ("open_clip",)
    remarks = "CLIP models and their vision towers, nn.MultiheadAttention blocks or timm-backed; encode_image"

    @classmethod
    def serves(cls, model: Any) -> bool:
        return type(model).__module__.startswith("open_clip.")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tower = getattr(model, "visual", model)
        if hasattr(tower, "trunk"):
            inner = TimmEncoder(tower.trunk)
            for name in ("tower", "blocks", "grid", "prefix", "has_cls", "has_distillation"):
                setattr(self, name, getattr(inner, name))
            return
        blocks = list(getattr(getattr(tower, "transformer", None), "resblocks", []))
        found = {type(block).__name__ for block in blocks}
        if not blocks or found != {"ResidualAttentionBlock"}:
            raise ValueError(
                f"open_clip tower {type(tower).__name__} has blocks of type {sorted(found) or 'unknown'}; allowed: "
                "ResidualAttentionBlock, or a timm-backed tower"
            )
        self.tower = tower
        self.blocks = [OpenClipBlock(block) for block in blocks]
        self.grid = tuple(tower.grid_size)
        self.prefix, self.has_cls = 1, True
