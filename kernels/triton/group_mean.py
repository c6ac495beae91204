"""Kernel of ``group_mean``: one program per group and strip of channels walks the members in ascending order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import addressable, block


def group_mean(features: Tensor, assign: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """As the reference."""
    features = addressable(features)
    batch, n, channels = features.shape
    # members of a group stand together and in order; those of no group (-1) stand first
    group, member = assign.sort(dim=1, stable=True)
    bounds = torch.arange(k + 1, device=assign.device).expand(batch, -1).contiguous()
    start = torch.searchsorted(group, bounds)
    weight = None if weight is None else weight.detach().float().contiguous()
    out = torch.empty(batch, k, channels, dtype=features.dtype, device=features.device)
    width = block(channels, 16, 1024)
    with torch.cuda.device_of(features):
        _group_mean[(k, triton.cdiv(channels, width), batch)](
            features, member, start, member if weight is None else weight, out, n, k, channels,
            features.stride(0), features.stride(1), WEIGHTED=weight is not None, WIDTH=width,
        )  # fmt: skip
    return out


@triton.jit
def _group_mean(
    features, member, start, weight, out, n, k, channels, batch_stride, row_stride,
    WEIGHTED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    first = tl.load(start + b * (k + 1) + r)
    last = tl.load(start + b * (k + 1) + r + 1)
    total = tl.zeros([WIDTH], tl.float32)
    mass = tl.zeros([WIDTH], tl.float32)
    for place in range(first, last):
        i = tl.load(member + b * n + place)
        w = 1.0
        if WEIGHTED:
            w = tl.load(weight + b * n + i)
        row = tl.load(features + b * batch_stride + i * row_stride + c, mask=c < channels, other=0.0)
        total += row.to(tl.float32) * w
        mass += w
    mean = total / tl.maximum(mass, 1.1754943508222875e-38)
    tl.store(out + (b * k + r) * channels + c, mean.to(out.dtype.element_ty), mask=c < channels)
