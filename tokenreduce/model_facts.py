"""What a method may know of a model when it plans."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.layout import PixelUnit
from tokenreduce.tokens import Stage


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a method may know of a model when it plans, before anything is attached.

    Attributes:
        family: its name, for messages. ``stages`` that it can serve; ``pixel_unit``, what a unit of ``pixels`` is made of.
        tower_depth: number of vision blocks; 0 where the tower has none, or none that can be listened to.
        tower_width: channels of its rows; 0: not known. ``tower_type``, its ``model_type``, or its class.
        feature_block: 0-based block whose output is used: fed to the projector, or the last of an encoder alone; -1: none.
        has_cls: whether the tower has a [CLS] token, its first row; ``has_distillation``, whether row 1 is a distillation token;
            ``tower_prefix``, rows before the first patch, registers, too. ``patches_per_token``, patches that one token joins.
        interpolated: in words, what pictures have tokens interpolated behind the projector, not rows in front of it; or empty.
        tower_grid: (height, width) of its patches, or of the units of them that become one token; None: not known.
        full_blocks: vision blocks in which every patch attends to the whole image; None: all of them.
        decoder_depth: number of decoder layers (0 for an encoder alone), each of ``decoder_heads`` heads of queries and
            ``decoder_width`` channels; 0: not known.
        shared_from: first decoder layer whose keys later ones attend to, too, after which no token may leave; None: none.
        tokens_per_image: visual tokens of one image when that is fixed, else None. ``restores``, whether rows that a step of the
            tower makes again (``Reduction.restore``) reach what stands behind.
    """

    family: str
    stages: tuple[Stage, ...]
    tower_depth: int
    feature_block: int
    has_cls: bool
    tower_width: int = 0
    tower_type: str = ""
    tower_prefix: int = 0
    pixel_unit: PixelUnit | None = None
    has_distillation: bool = False
    patches_per_token: int = 1
    interpolated: str = ""
    tower_grid: tuple[int, int] | None = None
    full_blocks: tuple[int, ...] | None = None
    decoder_depth: int = 0
    decoder_heads: int = 0
    decoder_width: int = 0
    shared_from: int | None = None
    tokens_per_image: int | None = None
    restores: bool = True
