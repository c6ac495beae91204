"""Kernel of ``bipartite_matching``: cosines in tiles that never leave the chip, a running best per row.

Lengths are divided out after the product, so half precision runs on tensor cores and loses nothing: products of two
half-precision numbers are exact in float32.
"""

from __future__ import annotations

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


def bipartite_matching(source: Tensor, destination: Tensor, *, others_only: bool = False) -> tuple[Tensor, Tensor]:
    """As the reference; with ``others_only``, row i of ``source`` is not compared with row i of ``destination``."""
    source, destination = addressable(source), addressable(destination)
    (batch, n, channels), m = source.shape, destination.shape[1]
    rows, columns = block(n), block(m)
    programs, blocks = triton.cdiv(n, rows) * batch, triton.cdiv(m, columns)
    cut = parts(programs, blocks, source.device)
    best = torch.empty(cut, batch, n, dtype=torch.float32, device=source.device)
    partner = torch.empty(cut, batch, n, dtype=torch.long, device=source.device)
    own = inverse_norm(source)
    other = own if destination is source else inverse_norm(destination)
    with torch.cuda.device_of(source):
        _matching[(triton.cdiv(n, rows), batch, cut)](
            source, destination, own, other, best, partner, n, m, channels, triton.cdiv(blocks, cut) * columns,
            source.stride(0), source.stride(1), destination.stride(0), destination.stride(1),
            ROWS=rows, COLUMNS=columns, OTHERS=others_only, UPCAST=upcast(source), **channels_at_once(source),
        )  # fmt: skip
    if cut == 1:
        return best[0], partner[0]
    best, part = best.max(dim=0)  # the first of equals: the lowest columns
    return best, partner.gather(0, part[None])[0]


@triton.jit
def _matching(
    source, destination, own, other, best, partner, n, m, channels, width,
    source_batch, source_row, destination_batch, destination_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, OTHERS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(own + b * n + rows, mask=rows < n, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    place = tl.zeros([ROWS], tl.int64)
    for left in range(part * width, tl.minimum((part + 1) * width, m), COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        cosine = products(
            source + b * source_batch, destination + b * destination_batch, rows, columns, n, m, channels,
            source_row, destination_row, STEP, UPCAST,
        )  # fmt: skip
        cosine *= scale[:, None] * tl.load(other + b * m + columns, mask=columns < m, other=0.0)[None, :]
        seen = (columns < m)[None, :]
        if OTHERS:
            seen = seen & (columns[None, :] != rows[:, None])
        value, at = tl.max(
            tl.where(seen, cosine, float("-inf")), axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        better = value > top
        place = tl.where(better, left + at, place)
        top = tl.where(better, value, top)
    batch = tl.num_programs(1)
    tl.store(best + (part * batch + b) * n + rows, top, mask=rows < n)
    tl.store(partner + (part * batch + b) * n + rows, place, mask=rows < n)
