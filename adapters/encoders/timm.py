"""Vision transformers of timm."""

from __future__ import annotations

import inspect
from typing import Any

from timm.models._features import FeatureGetterNet
from timm.models.eva import EvaBlock as TheirEvaBlock
from timm.models.vision_transformer import Block as TheirBlock
from torch import Tensor

from tokenreduce.adapters.encoders.base import EncoderFamily
from tokenreduce.adapters.encoders.blocks import Block, EvaBlock, TimmBlock
from tokenreduce.adapters.encoders.patch_grid import Arrived, PatchGrid, placed
from tokenreduce.layout import Layout

KINDS: dict[type, type[Block]] = {TheirBlock: TimmBlock, TheirEvaBlock: EvaBlock}


class TimmEncoder(EncoderFamily):
    model_types = ("timm",)
    remarks = (
        "VisionTransformer (plain, DeiT, DINOv2 with registers, SigLIP, AIMv2, InternViT, MAE pooling, q/k norm), Eva (EVA, "
        "EVA-CLIP, DINOv3, PE), NaFlexViT, padded batches too"
    )

    @classmethod
    def serves(cls, model: Any) -> bool:
        return type(model).__module__.startswith("timm.models")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if isinstance(model, FeatureGetterNet):
            model = self.tower = model.model
        blocks = list(getattr(model, "blocks", []))
        if not blocks or not all(type(block) in KINDS for block in blocks) or not hasattr(model, "num_prefix_tokens"):
            found = sorted({f"{type(block).__module__}.{type(block).__name__}" for block in blocks})
            raise ValueError(
                f"timm model {type(model).__name__} has blocks of type {found or 'unknown'}; allowed: Block, EvaBlock (of "
                f"{' and '.join(kind.__module__ for kind in KINDS)}), in which attention and MLP follow one another on one "
                "sequence of tokens. Windowed, hierarchical and parallel blocks, and attention with a bias by relative "
                "position, have no place between the two where tokens could be merged."
            )
        self.blocks = [KINDS[type(block)](block) for block in blocks]
        for block in self.blocks:
            block.rope_by_head = bool(getattr(model, "rope_mixed", False) or getattr(model, "rope_is_mixed", False))
        self.prefix = model.num_prefix_tokens
        made = getattr(model, "pretrained_cfg", None) or {}
        self.pixel_mean = tuple(made.get("mean") or self.pixel_mean)
        self.pixel_std = tuple(made.get("std") or self.pixel_std)
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.has_distillation = getattr(model, "dist_token", None) is not None
        if hasattr(model, "embeds"):
            self.has_cls = model.embeds.cls_token is not None
            self.patch_grid = NaFlexGrid(model.embeds)
            return
        patch = model.patch_embed
        grid = tuple(getattr(patch, "grid_size", None) or ())
        self.patch_grid = PatchGrid(patch.proj, grid or None)
        self.grid = grid if grid and patch.strict_img_size and not patch.dynamic_img_pad else None

    def collecting_methods(self) -> list[tuple[Any, str]]:
        return [(self.tower, "forward_intermediates")]


class NaFlexGrid(PatchGrid):
    """NaFlexViT is told the place of every patch, and, where images of several sizes are padded, which are real."""

    def watch(self) -> list[Any]:
        assert self.embedding is not None, "NaFlexViT has one"
        return [self.embedding.register_forward_hook(self.note_places, with_kwargs=True)]

    def note_places(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Any]
    ) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        x, grid = output
        if grid is not None:
            self.seen = [Arrived(Layout(*grid))] * len(x)
        else:
            self.seen = placed(given["patch_coord"], given.get("patch_valid"))
