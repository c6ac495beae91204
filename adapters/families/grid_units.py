"""Units of towers that run pictures as a batch, each one grid of patches after rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenreduce.adapters.encoders.patch_grid import cells_of

Placed = Callable[[Tensor], Sequence[Tensor]]


def pixels_of_tokens(pixels: Tensor, side: int, placed: Placed) -> list[Tensor]:
    """Of ``pixels`` (M, C, H, W), those of each picture's tokens; ``placed`` gives values of cells (M, cells) to tokens."""
    cells = cells_of(pixels, (side, side))
    numbers = torch.arange(cells.shape[0] * cells.shape[1], dtype=torch.float64, device=cells.device)
    return [cells.flatten(0, 1)[own.long()] for own in placed(numbers.view(cells.shape[:2]))]


def patches_of_tokens(
    rows: int, grid: tuple[int, int], unit: int, placed: Placed, device: torch.device
) -> list[Tensor]:
    """Of ``rows`` grids of so many patches, those of each picture's tokens, squares of ``unit`` x ``unit``, (N, unit * unit)."""
    high, wide = grid[0] // unit, grid[1] // unit
    numbers = torch.arange(rows * grid[0] * grid[1], device=device).view(rows, *grid)[:, : high * unit, : wide * unit]
    squares = numbers.unflatten(2, (wide, unit)).unflatten(1, (high, unit)).transpose(2, 3).reshape(-1, unit**2)
    cells = torch.arange(rows * high * wide, dtype=torch.float64, device=device).view(rows, -1)
    return [squares[own.long()] for own in placed(cells)]
