"""CLIP models of open_clip, and their vision towers."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import MultiheadBlock
from tokenreduce.adapters.encoders.patch_grid import PatchGrid
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
            vars(self).update(vars(inner) | {"model": model})
            return
        blocks = list(getattr(getattr(tower, "transformer", None), "resblocks", []))
        found = {type(block).__name__ for block in blocks}
        if not blocks or found != {"ResidualAttentionBlock"}:
            raise ValueError(
                f"open_clip tower {type(tower).__name__} has blocks of type {sorted(found) or 'unknown'}; allowed: "
                "ResidualAttentionBlock, or a timm-backed tower"
            )
        self.tower = tower
        self.blocks = [MultiheadBlock(block) for block in blocks]
        self.grid = tuple(tower.grid_size)
        self.patch_grid = PatchGrid(tower.conv1, self.grid)
        self.prefix, self.has_cls = 1, True
        # stated by a tower that was made with its preprocessing
        self.pixel_mean = tuple(getattr(tower, "image_mean", self.pixel_mean))
        self.pixel_std = tuple(getattr(tower, "image_std", self.pixel_std))

    def collecting_methods(self) -> list[tuple[Any, str]]:
        return [(self.tower, "forward_intermediates")]
