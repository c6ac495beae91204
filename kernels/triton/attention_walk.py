"""Kernel of ``attention_walk``: in each step a program owns some keys of a head and adds up the mass that all queries send."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.attention_row import Attention, logits, normalised, position
from tokenreduce.kernels.triton.common import parts, share, whole


def attention_walk(
    query: Tensor,
    key: Tensor,
    scale: float,
    mass: Tensor,
    real: Tensor,
    *,
    steps: int,
    visible: Tensor | None,
    causal: bool,
    place: Tensor | None,
    window: int | None,
) -> Tensor:
    """(B, H, N) where ``mass`` (B, H, N) is after ``steps``; queries of which ``real`` (B, Q) is 0 pass nothing on."""
    call = Attention(query, key, scale, visible, None, causal, place, window)
    past = call.n - call.rows
    columns, blocks = triton.cdiv(call.n, call.constants["COLUMNS"]), triton.cdiv(call.rows, call.constants["ROWS"])
    cut = whole(blocks, parts(columns * call.batch * call.heads, blocks, query.device))
    statistics = call.statistics() if steps else ()
    for _ in range(steps):
        leaving = (mass[:, :, past:] * real[:, None]).contiguous()
        out = torch.empty(cut, call.batch, call.heads, call.n, dtype=torch.float32, device=query.device)
        with torch.cuda.device_of(query):
            _step[(columns, call.batch * call.heads, cut)](
                *call.tensors, *statistics, leaving, out, *call.numbers, **call.constants
            )
        mass = torch.cat([mass[:, :, :past], torch.zeros_like(leaving)], dim=2) + out.sum(dim=0)
    return mass


@triton.jit
def _step(
    query, key, visible, bias, place, spans, top, inverse, leaving, out, rows_n, n, dim, scale, heads, group, window,
    query_b, query_h, query_row, key_b, key_h, key_row,
    VISIBLE: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, PLACED: tl.constexpr, PACKED: tl.constexpr,
    STEP: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    left = tl.program_id(0).to(tl.int64) * COLUMNS
    columns = left + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    start, stop = share(0, rows_n, ROWS)
    for first in range(start, stop, ROWS):
        rows = first + tl.arange(0, ROWS)
        sent = tl.load(leaving + (b * heads + h) * rows_n + rows, mask=rows < rows_n, other=0.0)
        needed = tl.max(sent) > 0
        if CAUSAL:  # a row of mass sees itself, so no row that sees nothing sends any
            last = position(place, b, rows, rows_n, n, PLACED)
            needed = needed & (tl.max(last) >= left) & (tl.min(last) - window < left + COLUMNS - 1)
        if needed:
            value = logits(
                query, key, visible, bias, place, spans, b, h, rows, columns, rows_n, n, dim, scale, group, window,
                query_b, query_h, query_row, key_b, key_h, key_row, VISIBLE, BIASED, CAUSAL, PLACED, PACKED,
                STEP, WHOLE, REST, UNIT, UPCAST,
            )  # fmt: skip
            weight = normalised(value, top, inverse, (b * heads + h) * rows_n, rows, rows_n)
            total += tl.sum(weight * sent[:, None], axis=0)
    tl.store(out + (part * tl.num_programs(1) + tl.program_id(1)) * n + columns, total, mask=columns < n)
