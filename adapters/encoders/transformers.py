"""Vision models of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import TransformersBlock
from tokenreduce.adapters.encoders.patch_grid import PatchGrid


class TransformersEncoder(EncoderFamily):
    model_types = (
        "clip_vision_model",
        "siglip_vision_model",
        "dinov2",
        "dinov2_with_registers",
        "vit",
        "deit",
    )
    remarks = "the vision model by itself"
    prefixes: ClassVar[dict[str, int]] = {"siglip_vision_model": 0, "deit": 2}

    @classmethod
    def serves(cls, model: Any) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) in cls.model_types

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        tower = model
        for name in ("vision_model", "vit", "dinov2", "deit", "dinov2_with_registers"):
            tower = getattr(tower, name, tower)
        encoder = getattr(tower, "encoder", tower)
        layers = getattr(encoder, "layers", None) or getattr(encoder, "layer", None)
        if layers is None:
            raise ValueError(f"{type(model).__name__} has no list of encoder layers where it was looked for")
        self.tower = tower
        self.blocks = [TransformersBlock(layer) for layer in layers]
        convolution = next((m for m in tower.embeddings.modules() if isinstance(m, nn.Conv2d)), None)
        self.patch_grid = PatchGrid(convolution, grid_of(config))
        # the others refuse images of another size unless interpolate_pos_encoding=True
        self.grid = None if config.model_type.startswith("dinov2") else grid_of(config)
        self.collects_blocks = hasattr(model, "out_features")  # a backbone
        registers = getattr(config, "num_register_tokens", 0)
        self.prefix = self.prefixes.get(config.model_type, 1) + registers
        self.has_cls = self.prefix > 0
        self.has_distillation = config.model_type == "deit"


def grid_of(config: Any) -> tuple[int, int]:
    """Patches, down and across, of an image of the configured size."""
    image, patch = (
        size if isinstance(size, (list, tuple)) else (size, size) for size in (config.image_size, config.patch_size)
    )
    return image[0] // patch[0], image[1] // patch[1]
