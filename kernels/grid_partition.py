"""K near-square regions that tile a grid: the geometry behind uniform sampling and average pooling."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def grid_partition(height: int, width: int, k: int) -> tuple[Tensor, Tensor]:
    """Cut a ``height`` x ``width`` grid into exactly ``k`` rectangles.

    The grid is cut into horizontal bands, each band into segments; both cuts are as even as integers allow, the number
    of segments differs by at most one between bands.

    Returns:
        (N,) long, region of each cell in raster order, and (k,) long, the central cell of each region. Regions are
        numbered in raster order; both tensors are on the CPU and must not be changed.
    """
    if not 1 <= k <= height * width:
        raise ValueError(f"k={k} regions of a {height}x{width} grid; allowed: 1 to {height * width}")
    bands = min(max(round(math.sqrt(k * height / width)), math.ceil(k / width), 1), height, k)
    region = torch.empty(height, width, dtype=torch.long)
    centre = torch.empty(k, dtype=torch.long)
    row = 0
    for band in range(bands):
        top, bottom = band * height // bands, (band + 1) * height // bands
        segments = (band + 1) * k // bands - band * k // bands
        for segment in range(segments):
            left, right = segment * width // segments, (segment + 1) * width // segments
            region[top:bottom, left:right] = row
            centre[row] = (top + bottom - 1) // 2 * width + (left + right - 1) // 2
            row += 1
    return region.flatten(), centre
