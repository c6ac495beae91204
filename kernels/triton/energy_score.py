"""Kernel of ``energy_score``: the margin function of cosine tiles, summed along rows before anything is written."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import (
    addressable,
    block,
    channels_at_once,
    inverse_norm,
    parts,
    products,
    upcast,
)


def energy_score(metric: Tensor, margin: float, alpha: float, *, gaussian: bool) -> Tensor:
    """As the reference."""
    metric = addressable(metric)
    batch, n, channels = metric.shape
    side = block(n)
    blocks = triton.cdiv(n, side)
    cut = parts(blocks * batch, blocks, metric.device)
    total = torch.empty(cut, batch, n, dtype=torch.float32, device=metric.device)
    with torch.cuda.device_of(metric):
        _energy[(blocks, batch, cut)](
            metric, inverse_norm(metric), total, n, channels, triton.cdiv(blocks, cut) * side, margin, alpha,
            metric.stride(0), metric.stride(1),
            ROWS=side, COLUMNS=side, GAUSSIAN=gaussian, UPCAST=upcast(metric), **channels_at_once(metric),
        )  # fmt: skip
    width = (1 - margin) * math.sqrt(2 * math.pi) if gaussian else 1.0
    return total.sum(dim=0) / (n * width)


@triton.jit
def _energy(
    metric, inverse, total, n, channels, width, margin, alpha, batch_stride, row_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, GAUSSIAN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    x = metric + b * batch_stride
    scale = tl.load(inverse + b * n + rows, mask=rows < n, other=0.0)
    score = tl.zeros([ROWS], tl.float32)
    for left in range(part * width, tl.minimum((part + 1) * width, n), COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        cosine = products(x, x, rows, columns, n, n, channels, row_stride, row_stride, STEP, UPCAST)
        cosine *= scale[:, None] * tl.load(inverse + b * n + columns, mask=columns < n, other=0.0)[None, :]
        if GAUSSIAN:
            away = (cosine - 1.0) / (1.0 - margin)
            value = tl.exp(-0.5 * away * away)
        else:
            above = cosine - margin
            value = tl.where(above > 0, above, alpha * (tl.exp(above) - 1.0))
        score += tl.sum(tl.where((columns < n)[None, :], value, 0.0), axis=1)
    tl.store(total + (part * tl.num_programs(1) + b) * n + rows, score, mask=rows < n)
