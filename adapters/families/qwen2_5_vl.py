"""Qwen2.5-VL: as Qwen2-VL, but most blocks of the tower attend within windows, and its sequence is sorted by them."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.adapters.families.packed_raster import from_windows
from tokenreduce.adapters.families.qwen2_vl import Qwen2VL


class Qwen2_5VL(Qwen2VL):
    model_types = ("qwen2_5_vl",)
    remarks = "dynamic resolution, window attention, M-RoPE; a frame is a temporal patch"
    streams_as = "video"

    @property
    def full_blocks(self) -> tuple[int, ...]:
        return tuple(self.towers[0].fullatt_block_indexes)

    def in_raster_order(self, units: Tensor, height: int, width: int) -> Tensor:
        side = self.towers[0].window_size // self.unit // self.towers[0].patch_size
        return from_windows(units, height, width, side)
