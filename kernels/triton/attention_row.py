"""Kernels of ``attention_row``: maximum and mass of every row first, then the weights, averaged over heads as they are made.

``Attention`` holds what both this operation and ``attention_received`` hand to their kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.common import REGISTERS, addressable, block, dot, parts, share, tile, upcast, whole

HIDDEN = tl.constexpr(torch.finfo(torch.float32).min)  # logit of a key that a row may not see, as in the reference
# How a product is cut, by the bytes of its elements. ``STEP``: channels of a head at a time, since products in full float32
# are made in registers, and a head in one piece spills; what is left over is padded by itself, so that 72 are read as 80
# and not as 128. ``ROWS``: 64 are what the tensor cores of compute capability 9.0 work on at once.
TILES: dict[int, dict[str, int]] = {
    2: {"STEP": 64, "ROWS": 64, "num_warps": 4},
    4: {"STEP": 16, "ROWS": 32, "num_warps": 8},
}


@dataclass
class Attention:
    """The arguments of an attention, as the kernels read them.

    Attributes:
        query: (B, H, Q, d); ``key``: (B, H_kv, N, d).
        visible: (B, N) or (B, Q, N) bool; ``bias``: (B, N) float; ``place``: (B, Q) long; ``spans``: (N, 2), the first key
            that each query of a packed sequence sees and the one after the last; None where there is none.
    """

    query: Tensor
    key: Tensor
    scale: float
    visible: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    place: Tensor | None = None
    window: int | None = None
    spans: Tensor | None = None

    def __post_init__(self) -> None:
        self.query, self.key = addressable(self.query), addressable(self.key)
        (self.batch, self.heads, self.rows, self.dim), self.n = self.query.shape, self.key.shape[2]
        nothing = self.query
        visible = nothing if self.visible is None else self.visible.contiguous()
        bias = nothing if self.bias is None else self.bias.detach().float().contiguous()
        place = nothing if self.place is None else self.place.contiguous()
        spans = nothing if self.spans is None else self.spans.contiguous()
        self.tensors = (self.query, self.key, visible, bias, place, spans)
        strides = (*self.query.stride()[:3], *self.key.stride()[:3])
        unit = math.gcd(8, self.dim, *strides)
        tiles = TILES[self.query.dtype.itemsize]
        step = tiles["STEP"]
        self.numbers = (
            self.rows, self.n, self.dim // unit, self.scale, self.heads, self.heads // self.key.shape[1],
            self.n if self.window is None else self.window, *(stride // unit for stride in strides),
        )  # fmt: skip
        self.constants: dict[str, Any] = {
            "VISIBLE": 0 if self.visible is None else self.visible.ndim,
            "BIASED": self.bias is not None,
            "CAUSAL": self.causal,
            "PLACED": self.place is not None,
            "PACKED": self.spans is not None,
            "WHOLE": self.dim // step * step,
            "REST": block(self.dim % step) if self.dim % step else 0,
            "UNIT": unit,
            **tiles,
            **REGISTERS,
            "COLUMNS": block(self.n, 16, 64),
            "UPCAST": upcast(self.query),
        }

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The highest logit of every row, and one over the mass of its exponentials, (B, H, Q) float32 each."""
        rows, blocks = triton.cdiv(self.rows, self.constants["ROWS"]), triton.cdiv(self.n, self.constants["COLUMNS"])
        device = self.query.device
        cut = whole(blocks, parts(rows * self.batch * self.heads, blocks, device))
        top, mass = (torch.empty(cut, self.batch, self.heads, self.rows, device=device) for _ in range(2))
        with torch.cuda.device_of(self.query):
            _statistics[(rows, self.batch * self.heads, cut)](*self.tensors, top, mass, *self.numbers, **self.constants)
        highest = top.amax(dim=0)
        mass = (mass * (top - highest).exp()).sum(dim=0)
        if self.causal and self.bias is None:
            # a row that sees nothing spreads evenly, over the blocks left out as well
            mass = mass.masked_fill(highest == HIDDEN.value, self.n)
        return highest, 1 / mass


def attention_row(
    query: Tensor, key: Tensor, scale: float, *, visible: Tensor | None, bias: Tensor | None, largest: bool
) -> Tensor:
    """As the reference; ``largest``: the maximum over heads instead of the mean."""
    call = Attention(query, key, scale, visible, bias)
    out = torch.empty(call.batch, call.rows, call.n, dtype=torch.float32, device=query.device)
    grid = (triton.cdiv(call.n, call.constants["COLUMNS"]), triton.cdiv(call.rows, call.constants["ROWS"]), call.batch)
    with torch.cuda.device_of(query):
        _weights[grid](*call.tensors, *call.statistics(), out, *call.numbers, LARGEST=largest, **call.constants)
    return out


@triton.jit
def logits(
    query, key, visible, bias, place, spans, b, h, rows, columns, rows_n, n, dim, scale, group, window,
    query_b, query_h, query_row, key_b, key_h, key_row,
    VISIBLE: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, PLACED: tl.constexpr, PACKED: tl.constexpr,
    STEP: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """(rows, columns) logits of head ``h`` of image ``b``; the lowest number where not seen, -inf outside the matrix or
    outside the row's segment. ``dim`` and all strides count ``UNIT`` elements, which tells the compiler how they divide:
    else a head of 72 is read element by element."""
    h = tl.cast(h, tl.int64)
    q = query + b * query_b * UNIT + h * query_h * UNIT
    k = key + b * key_b * UNIT + (h // group) * key_h * UNIT
    value = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for start in range(0, WHOLE, STEP):
        left = tile(q, rows, rows_n, query_row * UNIT, start, dim * UNIT, STEP)
        right = tile(k, columns, n, key_row * UNIT, start, dim * UNIT, STEP)
        value = dot(left, right, value, UPCAST)
    if REST:
        left = tile(q, rows, rows_n, query_row * UNIT, WHOLE, dim * UNIT, REST)
        right = tile(k, columns, n, key_row * UNIT, WHOLE, dim * UNIT, REST)
        value = dot(left, right, value, UPCAST)
    value *= scale
    if BIASED:
        value += tl.load(bias + b * n + columns, mask=columns < n, other=0.0)[None, :]
    if VISIBLE == 2:
        seen = tl.load(visible + b * n + columns, mask=columns < n, other=0)
        value = tl.where((seen != 0)[None, :], value, HIDDEN)
    if VISIBLE == 3:
        inside = (rows < rows_n)[:, None] & (columns < n)[None, :]
        seen = tl.load(visible + (b * rows_n + rows[:, None]) * n + columns[None, :], mask=inside, other=0)
        value = tl.where(seen != 0, value, HIDDEN)
    if CAUSAL:
        past = position(place, b, rows, rows_n, n, PLACED)[:, None] - columns[None, :]
        value = tl.where((past >= 0) & (past < window), value, HIDDEN)
    if PACKED:
        first = tl.load(spans + 2 * rows, mask=rows < rows_n, other=0)
        end = tl.load(spans + 2 * rows + 1, mask=rows < rows_n, other=0)
        own = (columns[None, :] >= first[:, None]) & (columns[None, :] < end[:, None])
        value = tl.where(own, value, float("-inf"))
    return tl.where((columns < n)[None, :], value, float("-inf"))


@triton.jit
def position(place, b, rows, rows_n, n, PLACED: tl.constexpr):
    """The key that each row sits at: the last that it sees where attention is causal."""
    if PLACED:
        return tl.load(place + b * rows_n + rows, mask=rows < rows_n, other=0).to(tl.int64)
    else:
        return rows + (n - rows_n)


@triton.jit
def segments(spans, first, n, STEP: tl.constexpr):
    """First token and end of the segments that tokens ``first`` to ``first`` + STEP belong to."""
    last = tl.minimum(first + STEP, n) - 1
    return tl.load(spans + 2 * first).to(tl.int64), tl.load(spans + 2 * last + 1).to(tl.int64)


@triton.jit
def _statistics(
    query, key, visible, bias, place, spans, top, mass, rows_n, n, dim, scale, heads, group, window,
    query_b, query_h, query_row, key_b, key_h, key_row,
    VISIBLE: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, PLACED: tl.constexpr, PACKED: tl.constexpr,
    STEP: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    part = tl.program_id(2).to(tl.int64)
    above = tl.program_id(0).to(tl.int64) * ROWS
    rows = above + tl.arange(0, ROWS)
    highest = tl.full([ROWS], HIDDEN, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if PACKED:
        low, high = segments(spans, above, rows_n, ROWS)
        start, stop = share(low, high, COLUMNS)
    else:
        start, stop = share(0, n, COLUMNS)
    if CAUSAL and not BIASED:  # blocks that no row sees
        last = position(place, b, rows, rows_n, n, PLACED)
        stop = tl.minimum(stop, tl.max(last) + 1)
        start += tl.maximum(tl.min(last) - window + 1 - start, 0) // COLUMNS * COLUMNS
    for left in range(start, stop, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        value = logits(
            query, key, visible, bias, place, spans, b, h, rows, columns, rows_n, n, dim, scale, group, window,
            query_b, query_h, query_row, key_b, key_h, key_row, VISIBLE, BIASED, CAUSAL, PLACED, PACKED,
            STEP, WHOLE, REST, UNIT, UPCAST,
        )  # fmt: skip
        new = tl.maximum(highest, tl.max(value, axis=1))
        total = total * tl.exp(highest - new) + tl.sum(tl.exp(value - new[:, None]), axis=1)
        highest = new
    at = (part * tl.num_programs(1) + tl.program_id(1)) * rows_n + rows
    tl.store(top + at, highest, mask=rows < rows_n)
    tl.store(mass + at, total, mask=rows < rows_n)


@triton.jit
def _weights(
    query, key, visible, bias, place, spans, top, inverse, out, rows_n, n, dim, scale, heads, group, window,
    query_b, query_h, query_row, key_b, key_h, key_row,
    LARGEST: tl.constexpr, VISIBLE: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr, PLACED: tl.constexpr,
    PACKED: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for h in range(0, heads):
        value = logits(
            query, key, visible, bias, place, spans, b, h, rows, columns, rows_n, n, dim, scale, group, window,
            query_b, query_h, query_row, key_b, key_h, key_row, VISIBLE, BIASED, CAUSAL, PLACED, PACKED,
            STEP, WHOLE, REST, UNIT, UPCAST,
        )  # fmt: skip
        weight = normalised(value, top, inverse, (b * heads + h) * rows_n, rows, rows_n)
        total = tl.maximum(total, weight) if LARGEST else total + weight
    if not LARGEST:
        total /= heads
    inside = (rows < rows_n)[:, None] & (columns < n)[None, :]
    tl.store(out + (b * rows_n + rows[:, None]) * n + columns[None, :], total, mask=inside)


@triton.jit
def normalised(value, top, inverse, first, rows, rows_n):
    """Softmax weights from logits and the statistics of their rows, which start at ``first``; 0 for rows outside."""
    highest = tl.load(top + first + rows, mask=rows < rows_n, other=0.0)
    share = tl.load(inverse + first + rows, mask=rows < rows_n, other=0.0)
    return tl.exp(value - highest[:, None]) * share[:, None]
