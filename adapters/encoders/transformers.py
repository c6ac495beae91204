"""Vision models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import TransformersBlock
from tokenreduce.adapters.encoders.patch_grid import Arrived, PatchGrid
from tokenreduce.layout import Layout

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
#: what pixels are moved and divided by, where that is not the mean and deviation of ImageNet
PIXELS = {"clip": CLIP, "metaclip": CLIP, "aimv2": CLIP, "siglip": HALF, "vit": HALF}
INSIDE = ("vision_model", "vit", "dinov2", "deit", "dinov2_with_registers", "ijepa", "vit_msn")  # of models with a head
ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "internvl_vision")  # without being asked to interpolate


class TransformersEncoder(EncoderFamily):
    model_types = (
        "aimv2",
        "aimv2_vision_model",
        "clip",
        "clip_vision_model",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "ijepa",
        "internvl_vision",
        "metaclip_2",
        "metaclip_2_vision_model",
        "siglip",
        "siglip2",
        "siglip2_vision_model",
        "siglip_vision_model",
        "vit",
        "vit_msn",
    )
    remarks = "the vision model by itself, or the model of pictures and texts that it belongs to"
    #: rows before the first patch, registers left out; 1, a [CLS], where nothing is said
    prefixes: ClassVar[dict[str, int]] = {
        "aimv2_vision_model": 0,
        "deit": 2,
        "ijepa": 0,
        "siglip2_vision_model": 0,
        "siglip_vision_model": 0,
    }

    @classmethod
    def serves(cls, model: Any) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) in cls.model_types

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tower = model
        for name in INSIDE:
            tower = getattr(tower, name, tower)
        config = tower.config
        kind = config.model_type
        layers = _layers(tower)
        if layers is None:
            raise ValueError(f"{type(model).__name__} has no list of encoder layers where it was looked for")
        self.tower = tower
        self.blocks = [TransformersBlock(layer) for layer in layers]
        native = kind in ANY_SIZE or getattr(config, "is_native", False)
        if kind == "siglip2_vision_model":
            self.patch_grid = SpatialShapes(tower.embeddings)
        else:
            convolution = next((m for m in tower.embeddings.modules() if isinstance(m, nn.Conv2d)), None)
            self.patch_grid = PatchGrid(convolution, grid_of(config))
            # the others refuse images of another size unless interpolate_pos_encoding=True
            self.grid = None if native else grid_of(config)
        self.collects_blocks = hasattr(model, "out_features")  # a backbone
        self.pixel_mean, self.pixel_std = PIXELS.get(kind.split("_")[0].rstrip("2"), (self.pixel_mean, self.pixel_std))
        self.prefix = self.prefixes.get(kind, 1) + getattr(config, "num_register_tokens", 0)
        self.has_cls = self.prefix > 0
        self.has_distillation = kind == "deit"


class SpatialShapes(PatchGrid):
    """SigLIP 2 of any aspect is told the height and width of every image, whose patches come first of those of the batch."""

    def watch(self) -> list[Any]:
        assert self.embedding is not None, "it has one"
        return [self.embedding.register_forward_hook(self.note_shapes, with_kwargs=True)]

    def note_shapes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        shapes = kwargs["spatial_shapes"] if "spatial_shapes" in kwargs else args[1]
        sides: Sequence[tuple[int, int]] = shapes.tolist() if isinstance(shapes, Tensor) else shapes
        n = output.shape[1]
        self.seen = [Arrived(Layout(h, w), tuple(range(h * w, n))) for h, w in sides]


def _layers(tower: Any) -> nn.ModuleList | None:
    """The blocks of ``tower``, which holds them itself or in one of its parts."""
    for holder in (tower, getattr(tower, "encoder", None), getattr(tower, "model", None)):
        for name in ("layers", "layer"):
            found = getattr(holder, name, None)
            if isinstance(found, nn.ModuleList):
                return found
    return None


def grid_of(config: Any) -> tuple[int, int]:
    """Patches, down and across, of an image of the configured size."""
    image, patch = (
        size if isinstance(size, (list, tuple)) else (size, size) for size in (config.image_size, config.patch_size)
    )
    return image[0] // patch[0], image[1] // patch[1]
