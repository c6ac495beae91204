"""What the kernels share: lengths and products of rows, how the columns are cut, launching.

Conventions of all kernels here: float32 accumulation whatever the dtype, 64-bit addresses, every axis masked, sums in a fixed
order (no atomics), of equal values the lowest index. Products of float32 are not rounded to TF32. Block sizes are fixed,
not tuned at run time, so that the same call gives the same bits, and a first call costs one compilation.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

EPSILON = tl.constexpr(1e-12)  # a row shorter than this counts as this long
INTERPRETED = knobs.runtime.interpret
# The assembler for NVIDIA's devices spills a few values to hold more programs at once, unless all registers are granted.
REGISTERS = {} if torch.version.hip else {"maxnreg": 255}
# Channels of a token at a time and warps of a program, by the bytes of a number: products in full float32 are made in
# registers, and more of them at once, or fewer threads to hold them, spill.
CHANNELS: dict[int, dict[str, int]] = {2: {"STEP": 64, "num_warps": 4}, 4: {"STEP": 32, "num_warps": 8}}
PARTS = 2  # programs per multiprocessor that the columns are cut for


def addressable(x: Tensor) -> Tensor:
    """``x`` without a graph, its last axis contiguous, copied only where it is not."""
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


def upcast(x: Tensor) -> bool:
    """Whether products need float32 operands: the interpreter has none of bfloat16."""
    return INTERPRETED and x.dtype == torch.bfloat16


def parts(programs: int, blocks: int, device: torch.device) -> int:
    """Parts to cut ``blocks`` blocks of columns into, so that ``programs`` row blocks fill the device."""
    if device.type != "cuda":
        return min(2, blocks)
    return max(1, min(blocks, PARTS * _multiprocessors(device.index) // programs))


def whole(blocks: int, cut: int) -> int:
    """At most ``cut`` equal parts of ``blocks`` blocks, none of them empty."""
    return triton.cdiv(blocks, triton.cdiv(blocks, cut))


@cache
def _multiprocessors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def block(n: int, low: int = 16, high: int = 64) -> int:
    """Power of two that holds ``n``, within [low, high]."""
    return min(max(triton.next_power_of_2(n), low), high)


def channels_at_once(x: Tensor) -> dict[str, int]:
    """How products of the rows of ``x`` (B, N, C) are cut along C."""
    cut = CHANNELS[x.dtype.itemsize]
    return {**cut, "STEP": block(x.shape[2], 16, cut["STEP"]), **REGISTERS}


def inverse_norm(x: Tensor) -> Tensor:
    """(B, N) float32, 1 / length of the rows of ``x`` (B, N, C)."""
    batch, n, channels = x.shape
    out = torch.empty(batch, n, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _inverse_norm[(triton.cdiv(n, 16), batch)](
            x, out, n, channels, x.stride(0), x.stride(1), ROWS=16, STEP=block(channels, 16, 128)
        )
    return out


@triton.jit
def _inverse_norm(x, out, n, channels, batch_stride, row_stride, ROWS: tl.constexpr, STEP: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, channels, STEP):
        value = tile(x + b * batch_stride, rows, n, row_stride, start, channels, STEP).to(tl.float32)
        total += tl.sum(value * value, axis=1)
    tl.store(out + b * n + rows, 1.0 / tl.maximum(tl.sqrt(total), EPSILON), mask=rows < n)


@triton.jit
def share(low, high, STEP: tl.constexpr):
    """Start and stop of this program's part, along the last axis of the grid, of the blocks of STEP from low to high."""
    width = tl.cdiv(tl.cdiv(high - low, STEP), tl.num_programs(2)) * STEP
    start = low + tl.program_id(2).to(tl.int64) * width
    return start, tl.minimum(start + width, high)


@triton.jit
def tile(x, rows, n, row_stride, start, channels, STEP: tl.constexpr):
    """Rows ``rows`` and columns start to start + STEP of a matrix of ``n`` x ``channels``; zeros outside."""
    c = start + tl.arange(0, STEP)
    inside = (rows < n)[:, None] & (c < channels)[None, :]
    return tl.load(x + rows[:, None] * row_stride + c[None, :], mask=inside, other=0.0)


@triton.jit
def products(
    a, b, rows, columns, n, m, channels, a_stride, b_stride, STEP: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Dot products (rows, columns) of rows of ``a`` (n, channels) with rows of ``b`` (m, channels)."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for start in range(0, channels, STEP):
        left = tile(a, rows, n, a_stride, start, channels, STEP)
        right = tile(b, columns, m, b_stride, start, channels, STEP)
        total = dot(left, right, total, UPCAST)
    return total


@triton.jit
def dot(left, right, total, UPCAST: tl.constexpr):
    """``total + left @ right.T``."""
    if UPCAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, tl.trans(right), total, input_precision="ieee")
