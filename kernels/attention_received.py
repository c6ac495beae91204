"""Attention received: the column mean of the attention map, without the map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_row import attention_row, obstacle

CHUNK = 64
Over = Literal["mean", "sum", "max"]


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
    over: Over = "mean",
    chunk: int = CHUNK,
) -> Tensor:
    """Mean over heads, and mean (or sum, or maximum) over real queries, of the softmax attention each key receives.

    Loops over blocks of ``chunk`` queries, so memory is O(B * H * chunk * N), never N x N.

    Args:
        query: (B, H, Q, d); ``key``: (B, H_kv, N, d), H_kv divides H.
        scale: factor on the dot product.
        visible: (B, N) bool, keys that are real; None: all.
        bias: (B, N) float added to the logits of every key; None: none.
        softcap: logits x become softcap * tanh(x / softcap), before the bias; None: they stay as they are.
        causal: query i sees keys up to N - Q + i only; with ``window``, only the last ``window`` of those.
        place: (B, Q) long, with ``causal``: the key that each query sits at, where that is not N - Q + i.
        query_mask: (B, Q) bool, queries that are real; None: all.
        over: how queries are reduced; heads are averaged first.
        chunk: queries per block.

    Returns:
        (B, N) float32. Without ``causal`` the values of one image sum to 1.
    """
    num_queries = query.shape[2]
    fast = dispatch.kernel("attention_received", query, key, limit=obstacle(query, key, softcap), graph=True)
    if fast is not None:
        mask = {"visible": visible, "bias": bias, "query_mask": query_mask}
        total = fast.attention_received(
            query, key, scale, causal=causal, place=place, window=window, largest=over == "max", **mask
        )
    else:
        total = _by_chunks(
            query, key, scale, visible, bias, softcap, causal=causal, place=place, window=window,
            query_mask=query_mask, largest=over == "max", chunk=chunk,
        )  # fmt: skip
    if over != "mean":
        return total
    if query_mask is None:
        return total / num_queries
    return total / query_mask.sum(dim=1, keepdim=True).clamp_min(1)


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
    columns = torch.arange(n, device=key.device)
    for start in range(0, num_queries, chunk):
        stop = min(start + chunk, num_queries)
        seen = visible
        if causal:
            limit = torch.arange(start, stop, device=key.device)[None] + (n - num_queries)
            limit = (limit if place is None else place[:, start:stop])[..., None]
            allowed = columns <= limit
            if window is not None:
                allowed = allowed & (columns > limit - window)
            allowed = allowed.expand(batch, -1, -1)
            seen = allowed if visible is None else allowed & visible[:, None]
        elif visible is not None:
            seen = visible[:, None].expand(batch, stop - start, n)
        weights = attention_row(query[:, :, start:stop], key, scale, visible=seen, bias=bias, softcap=softcap)
        if query_mask is not None:
            weights = weights * query_mask[:, start:stop, None]
        total = torch.maximum(total, weights.amax(dim=1)) if largest else total + weights.sum(dim=1)
    return total
