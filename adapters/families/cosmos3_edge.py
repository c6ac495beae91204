"""Cosmos 3 Edge: a packed SigLIP 2 whose patches come in squares of 2x2, each a token; a timestamp before every frame."""

from __future__ import annotations

from tokenreduce.adapters.families.packed_squares import PackedSquares
from tokenreduce.adapters.visual_inputs import Projection


class Cosmos3Edge(PackedSquares):
    model_types = ("cosmos3_edge",)
    remarks = "dynamic resolution, M-RoPE; every frame of a video has a timestamp"

    def projection(self) -> Projection:
        way = self.core.projector
        return Projection.through(way, way.linear_fc1, way.act_fn, way.linear_fc2)
