"""Families whose tower packs pictures of any size into one sequence of patches in raster order, and pools squares of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.layout import Layout


class PackedRaster(Family):
    packs = True

    def grids(self, call: TowerCall) -> list[tuple[int, int, int]]:
        """Patches of each picture of a pass: frames, down, across."""
        return [tuple(grid) for grid in call.numbers("grid_thw")]

    def unit_in(self, call: TowerCall) -> int:
        """``unit``, where it differs from pass to pass."""
        return self.unit

    @property
    def summaries(self) -> int:
        """Rows in front of the patches of each frame, which become no token."""
        return 0

    def joined(self, call: TowerCall, block: int) -> int:
        """Patches along a side of a row of ``block``, in a tower that joins some on the way."""
        return 1

    def patch_counts(self, call: TowerCall) -> list[int]:
        return [t * h * w for t, h, w in self.grids(call)]

    def row_counts(self, call: TowerCall, block: int) -> list[int]:
        area = self.joined(call, block) ** 2
        return [t * (self.summaries + h * w // area) for t, h, w in self.grids(call)]

    def pictures(self, call: TowerCall) -> list[Picture]:
        unit = self.unit_in(call)
        layouts = [Layout(h // unit, w // unit, frames=t) for t, h, w in self.grids(call)]
        return [Picture(layout, layout.num_tokens, rows=0, medium=None, pooled=unit > 1) for layout in layouts]

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        side, found = self.joined(call, block), []
        unit = self.unit_in(call) // side
        for own, (t, h, w) in zip(values.split(self.row_counts(call, block)), self.grids(call)):
            down, across = h // side // unit, w // side // unit
            patches = own.view(t, -1)[:, self.summaries :].unflatten(1, (h // side, w // side))
            rows = patches[:, : down * unit, : across * unit]
            found.append(rows.unflatten(2, (across, unit)).unflatten(1, (down, unit)).mean(dim=(2, 4)).flatten())
        return found

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        return list(values.split([picture.layout.num_tokens for picture in pictures]))


def from_windows(values: Tensor, height: int, width: int, side: int) -> Tensor:
    """``values`` (T * height * width,) in raster order, from frames sorted by windows of ``side`` x ``side``."""
    down = torch.arange(height, device=values.device)[:, None] // side
    window = (down * -(-width // side) + torch.arange(width, device=values.device) // side).flatten()
    place = window.argsort(stable=True).argsort()
    return values.view(-1, height * width)[:, place].flatten()
