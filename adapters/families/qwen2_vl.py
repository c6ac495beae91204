"""Qwen2-VL, and what its successors share: 2x2 patches joined in a token by the last module of the tower, the merger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block, PackedBlock
from tokenreduce.adapters.families.packed_squares import PackedSquares
from tokenreduce.adapters.upstream.model import video_positions
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import PixelUnit


class Qwen2VL(PackedSquares):
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    remarks = "dynamic resolution, M-RoPE; a frame is a temporal patch"
    streams_as = "video"

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].blocks

    def block(self, block: int, tower: int = 0) -> Block:
        return PackedBlock(self.layers(tower)[block])

    @property
    def projectors(self) -> list[nn.Module]:
        tower = self.towers[0]
        return [tower.merger, *getattr(tower, "deepstack_merger_list", ())]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        return self.projectors

    def projection(self) -> Projection:
        merger = self.towers[0].merger
        return Projection.through(merger, *merger.mlp)

    @property
    def pixel_unit(self) -> PixelUnit | None:
        config = self.towers[0].config
        side = config.patch_size
        return PixelUnit(self.unit**2, config.in_channels, config.temporal_patch_size, side, side)

    def unit_pixels(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[Tensor]:
        return list(pixels.view(-1, self.unit**2 * pixels.shape[1]).split([picture.columns for picture in pictures]))

    def unit_rows(self, call: TowerCall, pictures: list[Picture]) -> list[Tensor]:
        numbers = torch.arange(sum(picture.columns for picture in pictures), device=call.arguments["grid_thw"].device)
        patches = torch.arange(self.unit**2, device=numbers.device)
        return [units[:, None] * self.unit**2 + patches for units in self.placed(call, numbers, pictures)]

    @property
    def frames_per_step(self) -> int:
        return self.towers[0].config.temporal_patch_size

    def text_ids(self, first: int, count: int) -> Tensor:
        return super().text_ids(first, count).expand(3, 1, -1)

    def ids_going_on(
        self, arguments: Mapping[str, Any], columns: int, start: int, steps: int, following: int
    ) -> tuple[Tensor, int]:
        grid = arguments["video_grid_thw"][0].cpu()
        new, side = int(grid[0]), self.unit
        # height and width begin anew in every frame, and text goes on behind them; time is read off one token a frame
        ids = video_positions(self.core, arguments, grid, columns, text=1)
        times = video_positions(self.core, arguments, torch.tensor([steps + new, side, side]), steps + new)[
            0, 0, steps:
        ]
        behind = int(ids[0, 0, -1])
        ids = ids[..., :-1].clone()
        ids[0, 0] = times.repeat_interleave(columns // new)
        return ids + start, start + behind
