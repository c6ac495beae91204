"""Kernel of ``temporal_similarity``: both frames are read once, side by side, and only the cosine is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import addressable, block, tile

EPSILON = tl.constexpr(1e-8)  # as in torch's cosine similarity


def temporal_similarity(x: Tensor) -> Tensor:
    """As the reference, for two frames or more."""
    x = addressable(x)
    frames, n, channels = x.shape
    out = torch.empty(frames - 1, n, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _similarity[(frames - 1, triton.cdiv(n, 8))](
            x, out, n, channels, x.stride(0), x.stride(1), ROWS=8, STEP=block(channels, 16, 256)
        )
    return out


@triton.jit
def _similarity(x, out, n, channels, frame_stride, row_stride, ROWS: tl.constexpr, STEP: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    product = tl.zeros([ROWS], tl.float32)
    before = tl.zeros([ROWS], tl.float32)
    after = tl.zeros([ROWS], tl.float32)
    for start in range(0, channels, STEP):
        a = tile(x + t * frame_stride, rows, n, row_stride, start, channels, STEP).to(tl.float32)
        b = tile(x + (t + 1) * frame_stride, rows, n, row_stride, start, channels, STEP).to(tl.float32)
        product += tl.sum(a * b, axis=1)
        before += tl.sum(a * a, axis=1)
        after += tl.sum(b * b, axis=1)
    cosine = product / (tl.maximum(tl.sqrt(before), EPSILON) * tl.maximum(tl.sqrt(after), EPSILON))
    tl.store(out + t * n + rows, cosine, mask=rows < n)
