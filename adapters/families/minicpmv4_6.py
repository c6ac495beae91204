"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: a packed tower that joins 2x2 patches half-way, and 2x2 of these in its projector."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.packed_raster import PackedRaster
from tokenreduce.adapters.visual_inputs import Projection, TowerCall


class MiniCPMV4_6(PackedRaster):
    model_types = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
    remarks = (
        "slices, and frames of videos, are images of their own; the tower joins patches half-way; recurrent layers"
    )
    decoder_layers = ("full_attention", "linear_attention")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.after: int = model.config.merge_kernel_size[0] ** model.config.merger_times

    @property
    def unit(self) -> int:
        return self.after if self.model.config.downsample_mode == "4x" else 2 * self.after

    def grids(self, call: TowerCall) -> list[tuple[int, int, int]]:
        return [(1, int(h), int(w)) for h, w in call.arguments["target_sizes"]]

    def joined(self, call: TowerCall, block: int) -> int:
        where = self.towers[0].config.insert_layer_id
        return 2 if call.arguments.get("use_vit_merger", True) and 0 <= where < block else 1

    def unit_in(self, call: TowerCall) -> int:
        return self.after * self.joined(call, len(self.layers()))

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        side = self.towers[0].config.patch_size
        return list(pixels.split([side * n for n in self.patch_counts(call)], dim=3))

    def projection(self) -> Projection:
        last = self.core.merger.mlp[-1]

        def run(rows: Tensor) -> Tensor:
            return last(rows).view(*rows.shape[:-1], -1)

        return Projection(last, last, run)
