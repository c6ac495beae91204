"""Kernels of ``density_peaks``: distances by differences, in tiles that never leave the chip.

Three passes over the same tiles: the k smallest distances of every row with its largest, the smallest to a denser row, and
the nearest of a few rows. Rows are read channel by channel from a transposed copy, so that neighbouring threads read
neighbouring tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import block


def density(x: Tensor, most: int, k: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (B, N) of ``x`` (B, N, C) float32 from ``k`` (B,) <= ``most`` <= 32 neighbours among the first ``length`` (B,)
    rows of a set, and the largest distance (B,) of these."""
    batch, n, _ = x.shape
    out, farthest = (torch.zeros(batch, n, dtype=torch.float32, device=x.device) for _ in range(2))
    _tiles(_density, x, x, (out, farthest, k, length), NEAREST=triton.next_power_of_2(most))
    return out, farthest.amax(dim=1)


def nearest_denser(x: Tensor, density: Tensor) -> Tensor:
    """(B, N) distance of each row to the nearest denser one; of equal densities the lower index counts as denser."""
    out = torch.empty_like(density)
    _tiles(_nearest_denser, x, x, (density, out))
    return out


def nearest(x: Tensor, peaks: Tensor) -> Tensor:
    """(B, N) long, the nearest of ``peaks`` (B, M, C) for each row; the lowest of equally near ones."""
    out = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
    _tiles(_nearest, x, peaks, (out,))
    return out


def _tiles(kernel: triton.JITFunction, a: Tensor, b: Tensor, more: tuple[Tensor, ...], **constants: int) -> None:
    batch, n, channels = a.shape
    m = b.shape[1]
    left = a.mT.contiguous()
    right = left if b is a else b.mT.contiguous()
    with torch.cuda.device_of(a):
        kernel[(triton.cdiv(n, 32), batch)](
            left, right, *more, n, m, channels, ROWS=32, COLUMNS=block(m, 32), **constants
        )


@triton.jit
def _density(
    a, b, out, farthest, k, length, n, m, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NEAREST: tl.constexpr
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wanted, own = tl.load(k + image), tl.load(length + image)
    # the smallest so far, as negative numbers in falling order
    near = tl.full([ROWS, NEAREST], float("-inf"), tl.float32)
    far = tl.zeros([ROWS], tl.float32)
    for left in range(0, m, COLUMNS):
        columns = (left + tl.arange(0, COLUMNS)).to(tl.int64)
        distance = distances(a, b, image, rows, columns, n, m, channels)
        seen = (columns < own)[None, :]
        far = tl.maximum(far, tl.max(tl.where(seen, distance, 0.0), axis=1))
        new = tl.topk(tl.where(seen, -distance, float("-inf")), NEAREST)
        near = tl.topk(tl.reshape(tl.join(near, new), [ROWS, 2 * NEAREST]), NEAREST)
    counted = (tl.arange(0, NEAREST) < wanted)[None, :]
    tl.store(out + image * n + rows, -tl.sum(tl.where(counted, near * near, 0.0), axis=1) / wanted, mask=rows < own)
    tl.store(farthest + image * n + rows, far, mask=rows < own)


@triton.jit
def _nearest_denser(a, b, density, out, n, m, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = tl.load(density + image * n + rows, mask=rows < n, other=0.0)[:, None]
    near = tl.full([ROWS], float("inf"), tl.float32)
    for left in range(0, m, COLUMNS):
        columns = (left + tl.arange(0, COLUMNS)).to(tl.int64)
        distance = distances(a, b, image, rows, columns, n, m, channels)
        other = tl.load(density + image * m + columns, mask=columns < m, other=float("-inf"))[None, :]
        denser = (other > own) | ((other == own) & (columns[None, :] < rows[:, None]))
        near = tl.minimum(near, tl.min(tl.where(denser & (columns < m)[None, :], distance, float("inf")), axis=1))
    tl.store(out + image * n + rows, near, mask=rows < n)


@triton.jit
def _nearest(a, b, out, n, m, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    near = tl.full([ROWS], float("inf"), tl.float32)
    place = tl.zeros([ROWS], tl.int64)
    for left in range(0, m, COLUMNS):
        columns = (left + tl.arange(0, COLUMNS)).to(tl.int64)
        distance = tl.where((columns < m)[None, :], distances(a, b, image, rows, columns, n, m, channels), float("inf"))
        value, at = tl.min(distance, axis=1, return_indices=True, return_indices_tie_break_left=True)
        place = tl.where(value < near, left + at, place)
        near = tl.minimum(near, value)
    tl.store(out + image * n + rows, place, mask=rows < n)


@triton.jit
def distances(a, b, image, rows, columns, n, m, channels):
    """(rows, columns) distances of columns of ``a`` (C, n) from columns of ``b`` (C, m): exact zeros for duplicates."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    a += image * channels * n + rows
    b += image * channels * m + columns
    for _ in range(0, channels):
        left = tl.load(a, mask=rows < n, other=0.0)
        right = tl.load(b, mask=columns < m, other=0.0)
        difference = left[:, None] - right[None, :]
        total += difference * difference
        a += n
        b += m
    return tl.sqrt(total)
