"""Ragged compaction: chosen rows of every image, moved together, the rest of the output zero."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.shapes import fits


@dispatch.operation
def compact(x: Tensor, index: Tensor, valid: Tensor | None = None) -> Tensor:
    """Rows ``index`` of ``x``; rows that are not valid, or whose index is negative, are zero whatever ``x`` holds.

    Args:
        x: (B, N, D), any dtype.
        index: (B, K) long, each below N.
        valid: (B, K) bool, rows that exist where images keep different numbers; None: all.

    Returns:
        (B, K, D), the dtype of ``x``.

    Errors: ``ValueError`` for shapes that do not fit each other.
    """
    fits("compact", "index", index, len(x), *index.shape[1:2])
    if valid is not None:
        fits("compact", "valid", valid, *index.shape)
    fast = dispatch.kernel("compaction", x, graph=True)
    if fast is not None:
        return fast.compact(x, index, valid)
    exists = index >= 0 if valid is None else valid & (index >= 0)
    rows = take_rows(x, index.clamp_min(0))
    if x.device.type == "cpu":
        rows[~exists] = 0
        return rows
    return rows.masked_fill(~exists[..., None], 0)  # without waiting for the device
