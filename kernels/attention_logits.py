"""Logits of a few query rows, head mean, without a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch


@dispatch.operation
def attention_logits(query: Tensor, key: Tensor, scale: float, *, softcap: float | None = None) -> Tensor:
    """Mean over heads of the scaled products of R query rows with N keys.

    Heads that share a key have their queries added up first, so that one product per key head is made. There is no kernel
    of its own: it is one matrix product.

    Args:
        query: (B, H, R, d) the rows asked for, after q norm and rotary embedding.
        key: (B, H_kv, N, d); H_kv divides H.
        scale: factor on the dot product, usually d ** -0.5.
        softcap: logits x become softcap * tanh(x / softcap); None: they stay as they are.

    Returns:
        (B, R, N) float32, of either sign.
    """
    batch, heads, rows, _ = query.shape
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    keys = key.float().transpose(-1, -2)
    if softcap is None:
        return torch.matmul(grouped.sum(dim=2), keys).sum(dim=1) * (scale / heads)
    logits = torch.matmul(grouped.flatten(2, 3), keys).mul_(scale).view(batch, heads, rows, -1)
    return (torch.tanh(logits / softcap) * softcap).mean(dim=1)
