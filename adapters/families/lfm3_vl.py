"""LFM3-VL: a packed tower, some blocks of which are short convolutions over the grid of each picture."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.families.packed_squares import PackedSquares
from tokenreduce.adapters.visual_inputs import Projection


class Lfm3VL(PackedSquares):
    model_types = ("lfm3_vl",)
    remarks = (
        "dynamic resolution; scores of a tower block that is a convolution are those of the attention before it; short "
        "convolutions read the shortened sequence"
    )
    decoder_layers = ("full_attention", "sliding_attention", "conv")

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].layers

    @property
    def full_blocks(self) -> tuple[int, ...]:
        return tuple(self.attending_blocks())

    def attending_blocks(self, tower: int = 0) -> list[int]:
        return [i for i, kind in enumerate(self.towers[tower].config.layer_types) if kind != "conv"]

    def projection(self) -> Projection:
        way = self.core.multi_modal_projector
        return Projection.through(way, way.linear_1, way.act, way.linear_2)
