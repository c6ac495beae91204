"""Attention received: the column mean of the attention map, without the map."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_row import attention_row, obstacle

CHUNK = 64
FEW = 128  # shorter segments share a batch of as many weights as a chunk of this length has: more leave the CPU's cache
Over = Literal["mean", "sum", "max"]


@dispatch.operation
def attention_received(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = False,
    place: Tensor | None = None,
    window: int | None = None,
    query_mask: Tensor | None = None,
    cuts: Tensor | None = None,
    over: Over = "mean",
    chunk: int = CHUNK,
) -> Tensor:
    """Mean over heads, and mean (or sum, or maximum) over real queries, of the softmax attention each key receives.

    Loops over blocks of ``chunk`` queries, so memory is O(B * H * chunk * N), never N x N. In a packed sequence N is
    the longest segment there; equally long ones, such as the windows of a vision tower, run in batches within the same
    bound. The kernel takes all segments in one launch and leaves their borders on the device.

    Args:
        query: (B, H, Q, d); ``key``: (B, H_kv, N, d), H_kv divides H.
        scale: factor on the dot product.
        visible: (B, N) bool, keys that are real; None: all.
        bias: (B, N) float added to the logits of every key; None: none.
        softcap: logits x become softcap * tanh(x / softcap), before the bias; None: they stay as they are.
        causal: query i sees keys up to N - Q + i only; with ``window``, only the last ``window`` of those.
        place: (B, Q) long, with ``causal``: the key that each query sits at, where that is not N - Q + i.
        query_mask: (B, Q) bool, queries that are real; None: all.
        cuts: (S + 1,) int or long, 0 = cuts[0] <= ... <= cuts[S] = N: a packed sequence, B = 1 and Q = N, in which a query
            of segment cuts[s] ... cuts[s + 1] - 1 sees no other, and is reduced with those of its segment; None: one
            segment. Excludes ``causal``.
        over: how queries are reduced; heads are averaged first.
        chunk: queries per block.

    Returns:
        (B, N) float32. Without ``causal`` the values of one image, or of each segment, sum to 1.

    Errors: ``ValueError`` for ``cuts`` with ``causal``, with a batch or with other queries than keys; off the kernel also
    for ``cuts`` that do not run from 0 to N, where the kernel does not look.
    """
    if cuts is not None and (causal or query.shape[0] != 1 or query.shape[2] != key.shape[2]):
        raise ValueError(
            "cuts is for self-attention within the segments of one packed sequence, with causal=False, B = 1 and Q = N; got "
            f"causal={causal}, query {tuple(query.shape)} and key {tuple(key.shape)}. Leave cuts=None, or call once per segment."
        )
    spans = None if cuts is None else _spans(cuts, key.shape[2])
    num_queries = query.shape[2]
    fast = dispatch.kernel("attention_received", query, key, limit=obstacle(query, key, softcap), graph=True)
    if fast is not None:
        mask = {"visible": visible, "bias": bias, "query_mask": query_mask}
        total = fast.attention_received(
            query, key, scale, causal=causal, place=place, window=window, largest=over == "max", spans=spans, **mask
        )
    elif cuts is None:
        total = _by_chunks(
            query, key, scale, visible, bias, softcap, causal=causal, place=place, window=window,
            query_mask=query_mask, largest=over == "max", chunk=chunk,
        )  # fmt: skip
    else:
        total = _by_segments(
            query, key, scale, visible, bias, softcap, query_mask, cuts, largest=over == "max", chunk=chunk
        )
    if over != "mean":
        return total
    if query_mask is None:
        return total / (num_queries if spans is None else spans.diff(dim=1).T)
    if spans is None:
        return total / query_mask.sum(dim=1, keepdim=True).clamp_min(1)
    until = F.pad(query_mask[0].cumsum(dim=0), (1, 0))
    return total / (until.index_select(0, spans[:, 1]) - until.index_select(0, spans[:, 0])).clamp_min(1)


def _spans(cuts: Tensor, n: int) -> Tensor:
    """(N, 2) the first token of each token's segment, and the one after its last."""
    inner = cuts[1:-1].contiguous()
    segment = torch.searchsorted(inner, torch.arange(n, dtype=cuts.dtype, device=cuts.device), right=True)
    return cuts.clamp(0, n).unfold(0, 2, 1).index_select(0, segment)


def _by_segments(
    query: Tensor,
    key: Tensor,
    scale: float,
    visible: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    query_mask: Tensor | None,
    cuts: Tensor,
    *,
    largest: bool,
    chunk: int,
) -> Tensor:
    """As ``_by_chunks``, (1, N), of a packed sequence."""
    n = key.shape[2]
    borders = cuts.tolist()
    lengths = [stop - start for start, stop in pairwise(borders)]
    if borders[0] != 0 or borders[-1] != n or min(lengths) < 0:
        raise ValueError(f"cuts must rise from 0 to N = {n}, the borders of all segments; got {borders}")
    room = chunk * max(FEW, *lengths)  # weights of a batch, per head
    totals = []
    for start, length, count in _batches(lengths, room, chunk):
        part = slice(start, start + length * count)

        def own(x: Tensor | None, part: slice = part, count: int = count) -> Tensor | None:
            return None if x is None else x[0, part].unflatten(0, (count, -1))

        def rows(x: Tensor, part: slice = part, count: int = count) -> Tensor:
            return x[0, :, part].unflatten(1, (count, -1)).transpose(0, 1)

        totals.append(
            _by_chunks(
                rows(query), rows(key), scale, own(visible), own(bias), softcap, causal=False, place=None, window=None,
                query_mask=own(query_mask), largest=largest, chunk=chunk,
            ).flatten()
        )  # fmt: skip
    return torch.cat(totals)[None]


def _batches(lengths: list[int], room: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    """Start, length and count of segments that are equally long, follow one another and fit into ``room``."""
    start = 0
    for length, run in groupby(lengths):
        left = len(list(run)) if length else 0
        while left:
            count = min(left, max(1, room // (min(chunk, length) * length)))
            yield start, length, count
            start, left = start + length * count, left - count


def _by_chunks(
    query: Tensor,
    key: Tensor,
    scale: float,
    visible: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    *,
    causal: bool,
    place: Tensor | None,
    window: int | None,
    query_mask: Tensor | None,
    largest: bool,
    chunk: int,
) -> Tensor:
    """(B, N) sum over real queries, or their ``largest``, of the weights averaged over heads."""
    batch, _, num_queries, _ = query.shape
    n = key.shape[2]
    total = key.new_zeros(batch, n, dtype=torch.float32)
    for start in range(0, num_queries, chunk):
        rows = slice(start, min(start + chunk, num_queries))
        seen = seen_by(rows, query, key, visible, causal=causal, place=place, window=window)
        weights = attention_row(query[:, :, rows], key, scale, visible=seen, bias=bias, softcap=softcap)
        if query_mask is not None:
            weights = weights * query_mask[:, rows, None]
        total = torch.maximum(total, weights.amax(dim=1)) if largest else total + weights.sum(dim=1)
    return total


def seen_by(
    rows: slice,
    query: Tensor,
    key: Tensor,
    visible: Tensor | None,
    *,
    causal: bool,
    place: Tensor | None,
    window: int | None,
) -> Tensor | None:
    """(B, R, N) bool, the keys that each of the R queries ``rows`` sees; None: all. Arguments as of ``attention_received``."""
    batch, num_queries, n = query.shape[0], query.shape[2], key.shape[2]
    if not causal:
        return None if visible is None else visible[:, None].expand(batch, rows.stop - rows.start, n)
    limit = torch.arange(rows.start, rows.stop, device=key.device)[None] + (n - num_queries)
    limit = (limit if place is None else place[:, rows])[..., None]
    columns = torch.arange(n, device=key.device)
    allowed = columns <= limit
    if window is not None:
        allowed = allowed & (columns > limit - window)
    allowed = allowed.expand(batch, -1, -1)
    return allowed if visible is None else allowed & visible[:, None]
