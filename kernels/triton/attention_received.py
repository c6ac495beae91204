"""Kernel of ``attention_received``: a program owns some keys, walks the queries that may see them, head by head, and adds
up what arrives.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.attention_row import HIDDEN, Attention, logits, normalised, position, segments
from tokenreduce.kernels.triton.common import parts, share, whole


def attention_received(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    visible: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    place: Tensor | None,
    window: int | None,
    query_mask: Tensor | None,
    spans: Tensor | None,
    largest: bool,
) -> Tensor:
    """(B, N) sum over real queries, or their ``largest``, of the weights averaged over heads."""
    call = Attention(query, key, scale, visible, bias, causal, place, window, spans)
    columns, blocks = triton.cdiv(call.n, call.constants["COLUMNS"]), triton.cdiv(call.rows, call.constants["ROWS"])
    cut = whole(blocks, parts(columns * call.batch, blocks, query.device))
    out = torch.empty(cut, call.batch, call.n, dtype=torch.float32, device=query.device)
    real = call.query if query_mask is None else query_mask.contiguous()
    with torch.cuda.device_of(query):
        _received[(columns, call.batch, cut)](
            *call.tensors, *call.statistics(), real, out, *call.numbers,
            LARGEST=largest, MASKED=query_mask is not None, **call.constants,
        )  # fmt: skip
    return out.amax(dim=0) if largest else out.sum(dim=0)


@triton.jit
def _received(
    query, key, visible, bias, place, spans, top, inverse, real, out, rows_n, n, dim, scale, heads, group, window,
    query_b, query_h, query_row, key_b, key_h, key_row,
    LARGEST: tl.constexpr, MASKED: tl.constexpr, VISIBLE: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr,
    PLACED: tl.constexpr, PACKED: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    left = tl.program_id(0).to(tl.int64) * COLUMNS
    columns = left + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    if PACKED:
        low, high = segments(spans, left, n, COLUMNS)
        start, stop = share(low, high, ROWS)
    else:
        start, stop = share(0, rows_n, ROWS)
    for first in range(start, stop, ROWS):
        rows = first + tl.arange(0, ROWS)
        needed = True
        if CAUSAL and not BIASED:  # does a row see any of these keys, or none at all and spreads evenly?
            last = position(place, b, rows, rows_n, n, PLACED)
            blank = tl.load(top + b * heads * rows_n + rows, mask=rows < rows_n, other=0.0) == HIDDEN
            seen = (tl.max(last) >= left) & (tl.min(last) - window < left + COLUMNS - 1)
            needed = seen | (tl.max(blank.to(tl.int32)) > 0)
        if needed:
            weight = tl.zeros([ROWS, COLUMNS], tl.float32)
            for h in range(0, heads):
                value = logits(
                    query, key, visible, bias, place, spans, b, h, rows, columns, rows_n, n, dim, scale, group, window,
                    query_b, query_h, query_row, key_b, key_h, key_row, VISIBLE, BIASED, CAUSAL, PLACED, PACKED,
                    STEP, WHOLE, REST, UNIT, UPCAST,
                )  # fmt: skip
                weight += normalised(value, top, inverse, (b * heads + h) * rows_n, rows, rows_n)
            if MASKED:
                counts = tl.load(real + b * rows_n + rows, mask=rows < rows_n, other=0)
                weight = tl.where((counts != 0)[:, None], weight, 0.0)
            total = tl.maximum(total, tl.max(weight, axis=0)) if LARGEST else total + tl.sum(weight, axis=0)
    tl.store(out + (part * tl.num_programs(1) + b) * n + columns, total / heads, mask=columns < n)
