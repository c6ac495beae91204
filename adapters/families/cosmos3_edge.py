"""Cosmos 3 Edge: a packed SigLIP 2 whose patches come in squares of 2x2, each a token; a timestamp before every frame."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.adapters.encoders.blocks import Block, TransformersBlock
from tokenreduce.adapters.families.qwen2_vl import Qwen2VL
from tokenreduce.adapters.visual_inputs import Projection


class Cosmos3Edge(Qwen2VL):
    model_types = ("cosmos3_edge",)
    remarks = "dynamic resolution, M-RoPE; every frame of a video has a timestamp"
    pixel_unit = None  # positions are resized to the whole grid in front of the first block

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].encoder.layers

    def block(self, block: int, tower: int = 0) -> Block:
        return TransformersBlock(self.layers(tower)[block])

    @property
    def projectors(self) -> list[nn.Module]:
        return [self.core.projector]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return []

    def projection(self) -> Projection:
        way = self.core.projector
        return Projection.through(way, way.linear_fc1, way.act_fn, way.linear_fc2)
