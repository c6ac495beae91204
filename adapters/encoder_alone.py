"""Vision encoders by themselves: timm, open_clip, and the vision models of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from tokenreduce.adapters.blocks import Block, EvaBlock, OpenClipBlock, TimmBlock, TransformersBlock
from tokenreduce.adapters.encoder import EncoderDoor
from tokenreduce.adapters.family import _FAMILIES
from tokenreduce.cost import Report
from tokenreduce.groups import Image, group_images
from tokenreduce.method import ModelFacts
from tokenreduce.pipeline import Pipeline
from tokenreduce.tokens import Layout
from tokenreduce.traces import Trace


class EncoderFamily:
    """Facts of one library's vision encoders, read off one model; ``tower`` is the module whose forward is one pass."""

    model_types: ClassVar[tuple[str, ...]]
    remarks: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for model_type in cls.model_types:
            _FAMILIES[model_type] = cls

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tower: Any = model
        self.blocks: list[Block] = []
        self.grid: tuple[int, int] | None = None
        self.prefix = 0
        self.has_cls = False
        self.has_distillation = False

    @classmethod
    def serves(cls, model: Any) -> bool:
        raise NotImplementedError

    def facts(self) -> ModelFacts:
        return ModelFacts(
            family=type(self).__name__,
            stages=("encoder",),
            tower_depth=len(self.blocks),
            feature_block=len(self.blocks) - 1,
            has_cls=self.has_cls,
            tower_prefix=self.prefix,
            has_distillation=self.has_distillation,
            tower_grid=self.grid,
            tokens_per_image=None if self.grid is None else self.grid[0] * self.grid[1],
        )


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
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        registers = getattr(config, "num_register_tokens", 0)
        self.prefix = self.prefixes.get(config.model_type, 1) + registers
        self.has_cls = self.prefix > 0
        self.has_distillation = config.model_type == "deit"


class TowerDoor:
    """What a wrapped encoder carries: the encoder steps, and the trace and report of its last pass."""

    def __init__(self, family: EncoderFamily, pipeline: Pipeline, output_length: str = "full") -> None:
        self.family = family
        self.pipeline = pipeline
        self.expand = output_length == "full"
        layout = None if family.grid is None else Layout(*family.grid)
        self.encoder = EncoderDoor(family.blocks, pipeline, layout, family.prefix, expand=self.expand)
        self.trace: Trace | None = None
        self.report: Report | None = None

    def attach(self) -> list[Any]:
        handles: list[Any] = []
        try:
            self.encoder.attach(handles, self._record)
            handles.append(self.family.tower.register_forward_hook(self.leave))
        except BaseException:
            for handle in reversed(handles):
                handle.remove()
            raise
        return handles

    def use(self, pipeline: Pipeline) -> None:
        self.pipeline = self.encoder.pipeline = pipeline

    def leave(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Bring hidden states that were recorded on the way to full width."""
        state = self.encoder.state
        if not self.expand or state is None or not state.touched or not hasattr(output, "get"):
            return None
        if output.get("hidden_states") is not None:
            output["hidden_states"] = self.encoder.full_width(state, output["hidden_states"])
        return output

    def _record(self, state: Any) -> None:
        batch, rows = state.assign.shape
        n, prefix = rows - self.family.prefix, self.family.prefix
        layout = Layout(1, n) if self.encoder.layout is None else self.encoder.layout
        columns = torch.arange(n)
        groups = group_images([Image(b, columns, layout) for b in range(batch)], state.assign.device)
        for group in groups:
            group.history = state.patches(prefix)
        self.trace = Trace(groups, torch.ones(batch, n, dtype=torch.bool))
        counts = state.counts(len(self.family.blocks))
        flops = sum(block_flops(b, before, after) for b, (before, after) in zip(self.family.blocks, counts))
        whole = sum(block_flops(b, rows, rows) for b in self.family.blocks)
        kept = state.size.shape[1] - prefix
        self.report = Report(
            tokens_in=[[n]] * batch,
            tokens_kept=[[kept]] * batch,
            tokens_at_layer=[[before - prefix] * batch for before, _ in counts],
            flops=batch * flops,
            flops_unreduced=batch * whole,
            kv_bytes=0,
            kv_bytes_unreduced=0,
            methods=tuple(method.name for method in self.pipeline.methods),
            stopwatch=self.pipeline.stopwatch.lap(),
        )


def block_flops(block: Block, before: int, after: int) -> int:
    """FLOPs of a block whose attention sees ``before`` tokens and whose MLP ``after``; a multiply-add counts 2."""

    def weights(module: Any) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 2)

    attention, mlp = weights(block.attention), weights(block.mlp)
    width = int(block.norm2.weight.shape[0])
    return 2 * before * attention + 4 * before * before * width + 2 * after * mlp
