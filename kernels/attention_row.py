"""Attention of a few query rows, without the rest of the attention map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch

Heads = Literal["mean", "max"]


@dispatch.operation
def attention_row(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    heads: Heads = "mean",
) -> Tensor:
    """Softmax attention of R query rows over N keys, reduced over heads.

    Args:
        query: (B, H, R, d) the rows asked for, after q norm and rotary embedding.
        key: (B, H_kv, N, d); H_kv divides H, grouped keys are never repeated in memory.
        scale: factor on the dot product, usually d ** -0.5.
        visible: (B, N) or (B, R, N) bool, keys a row may see; None: all.
        bias: (B, N) float added to the logits of every key, such as the log of token sizes; None: none.
        softcap: logits x become softcap * tanh(x / softcap), before the bias; None: they stay as they are.
        heads: ``mean`` or ``max`` over the H heads.

    Returns:
        (B, R, N) float32, each row of the mean sums to 1 over visible keys.
    """
    fast = dispatch.kernel("attention_row", query, key, limit=obstacle(query, key, softcap), graph=True)
    if fast is not None:
        return fast.attention_row(query, key, scale, visible=visible, bias=bias, largest=heads == "max")
    weights = attention_weights(query, key, scale, visible=visible, bias=bias, softcap=softcap)
    return weights.mean(dim=1) if heads == "mean" else weights.amax(dim=1)


def attention_weights(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """(B, H, R, N) float32, the softmax attention of every head; arguments as of ``attention_row``."""
    batch, num_heads, rows, dim = query.shape
    kv_heads, n = key.shape[1], key.shape[2]
    grouped = query.float().reshape(batch, kv_heads, num_heads // kv_heads * rows, dim)
    logits = torch.matmul(grouped, key.float().transpose(-1, -2)).mul_(scale).reshape(batch, num_heads, rows, n)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + bias.float()[:, None, None]
    if visible is not None:
        visible = visible.reshape(batch, 1, -1, n)
        logits = logits.masked_fill(~visible, torch.finfo(torch.float32).min)
    return logits.softmax(dim=-1)


def obstacle(query: Tensor, key: Tensor, softcap: float | None = None) -> str | None:
    """Why the kernels do not serve these shapes; None: they do."""
    if softcap is not None:
        return "the logits are soft-capped"
    wide = f"a head of {query.shape[-1]} channels is wider than 256" if query.shape[-1] > 256 else None
    return wide or dispatch.one_dtype(query, key)
