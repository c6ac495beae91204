"""Vision transformers of torchvision."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import MultiheadBlock
from tokenreduce.adapters.encoders.patch_grid import PatchGrid


class TorchvisionEncoder(EncoderFamily):
    model_types = ("torchvision",)
    remarks = "VisionTransformer, images of the size it was made for"

    @classmethod
    def serves(cls, model: Any) -> bool:
        return type(model).__module__.startswith("torchvision.models")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        encoder = getattr(model, "encoder", None)
        layers = getattr(encoder, "layers", None)
        if not isinstance(layers, nn.Sequential) or {type(layer).__name__ for layer in layers} != {"EncoderBlock"}:
            raise ValueError(
                f"torchvision model {type(model).__name__} has no encoder of EncoderBlocks; allowed: VisionTransformer "
                "(vit_b_16, vit_l_14, ...). Convolutions have no tokens, and windowed blocks (Swin, MaxViT) need their whole "
                "grid, in which no patch can be missing"
            )
        self.blocks = [MultiheadBlock(layer, "self_attention") for layer in layers]
        side = model.image_size // model.patch_size
        self.grid = (side, side)
        self.patch_grid = PatchGrid(model.conv_proj, self.grid)
        self.prefix, self.has_cls = 1, True
