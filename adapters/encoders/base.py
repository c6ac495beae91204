"""What the vision encoders of one library have to tell, when they are wrapped by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from tokenreduce.adapters.encoders.blocks import Block
from tokenreduce.adapters.encoders.patch_grid import PatchGrid
from tokenreduce.adapters.registry import register
from tokenreduce.model_facts import ModelFacts


class EncoderFamily:
    """Facts of one library's vision encoders, read off one model; ``tower`` is the module whose forward is one pass."""

    model_types: ClassVar[tuple[str, ...]]
    remarks: ClassVar[str] = ""
    #: by which processors move and divide pixel values between 0 and 1, per channel
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls.model_types, cls)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tower: Any = model
        self.blocks: list[Block] = []
        self.grid: tuple[int, int] | None = None  #: where images of another size are refused or interpolated on request
        self.patch_grid = PatchGrid(None)
        self.collects_blocks = False  #: whether the model makes feature maps of what its blocks return
        self.prefix = 0
        self.has_cls = False
        self.has_distillation = False

    @property
    def hooked(self) -> list[Any]:
        """The modules that hooks sit on: no two wrapped models may share one."""
        return [self.tower]

    @classmethod
    def serves(cls, model: Any) -> bool:
        raise NotImplementedError

    def collecting_methods(self) -> list[tuple[Any, str]]:
        """Methods, as (owner, name), that collect what blocks return."""
        return []

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

    def offers(self) -> ModelFacts:
        """``facts`` of this very model."""
        facts, unit = self.facts(), self.patch_grid.unit
        return replace(
            facts,
            stages=(*(("pixels",) if unit else ()), *facts.stages),
            pixel_unit=unit,
            tower_width=max((p.numel() for p in self.blocks[0].norm2.parameters()), default=0) if self.blocks else 0,
            tower_type=getattr(getattr(self.tower, "config", None), "model_type", "") or type(self.tower).__name__,
        )
