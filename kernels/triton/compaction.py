"""Kernel of ``compact``: gather and mask in one pass over the rows that are kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import addressable, block


def compact(x: Tensor, index: Tensor, valid: Tensor | None = None) -> Tensor:
    """As the reference."""
    x = addressable(x)
    (batch, _, channels), k = x.shape, index.shape[1]
    index = index.contiguous()
    valid = index if valid is None else valid.contiguous()
    out = torch.empty(batch, k, channels, dtype=x.dtype, device=x.device)
    width = block(channels, 16, 256)
    with torch.cuda.device_of(x):
        _compact[(triton.cdiv(k, 8), triton.cdiv(channels, width), batch)](
            x, index, valid, out, k, channels, x.stride(0), x.stride(1), MASKED=valid is not index, ROWS=8, WIDTH=width
        )
    return out


@triton.jit
def _compact(
    x, index, valid, out, k, channels, batch_stride, row_stride,
    MASKED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    i = tl.load(index + b * k + rows, mask=rows < k, other=-1)
    exists = i >= 0
    if MASKED:
        exists = exists & (tl.load(valid + b * k + rows, mask=rows < k, other=0) != 0)
    inside = (c < channels)[None, :]
    value = tl.load(
        x + b * batch_stride + i[:, None] * row_stride + c[None, :], mask=exists[:, None] & inside, other=0.0
    )
    tl.store(out + (b * k + rows[:, None]) * channels + c[None, :], value, mask=(rows < k)[:, None] & inside)
