"""Attention rows divided by what distance alone explains, over the heads in which most is left."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_row import attention_weights
from tokenreduce.kernels.rows import row_blocks, take_rows


@dispatch.operation
def corrected_attention(
    query: Tensor,
    key: Tensor,
    scale: float,
    nearness: tuple[Tensor, Tensor],
    column: Tensor,
    *,
    visible: Tensor,
    real: Tensor,
    heads: int,
    least: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of R query rows to the keys ``column``, each pair's divided by its nearness, summed over the rows; of the
    ``heads`` heads in which the whole sum is largest, the mean over heads and rows.

    Blocks of rows bound memory: O(B * H * N * 64). There is no kernel of its own: it is two matrix products.

    Args:
        query: (B, H, R, d); ``key``: (B, H_kv, N, d); H_kv divides H; ``scale``: factor on the dot product.
        nearness: (B, R, e) and (B, n, e) rows of length 1 whose dot product is the nearness of a query and a column.
        column: (B, n) long, keys in [0, N).
        visible: (B, R, N) bool, keys a row may see.
        real: (B, R) bool, rows that count.
        heads: 1 to H; of equal sums the lowest head wins.
        least: nearness does not fall below this; None: as it is, of either sign.
        softcap: logits x become softcap * tanh(x / softcap); None: they stay as they are.

    Returns:
        (B, n) float32; 0 where no row counts.

    Errors: ``ValueError`` for ``heads`` out of range.

    Source: "SparseVLM+: Visual Token Sparsification with Improved Text-Visual Attention Pattern", 2025.
    """
    if not 1 <= heads <= query.shape[1]:
        raise ValueError(f"heads={heads}; allowed: 1 to {query.shape[1]}, the heads of this attention")
    total = query.new_zeros(query.shape[0], query.shape[1], column.shape[1], dtype=torch.float32)
    for rows in row_blocks(query.shape[2], query.shape[1] * key.shape[2]):
        paid = attention_weights(query[:, :, rows], key, scale, visible=visible[:, rows], softcap=softcap)
        paid = paid.gather(3, column[:, None, None].expand(-1, *paid.shape[1:3], -1))
        near = nearness[0][:, rows].float() @ nearness[1].float().mT
        near = near if least is None else near.clamp_min(least)
        paid = (paid / near[:, None]).masked_fill(~real[:, None, rows, None], 0)
        total += paid.sum(dim=2)
    best = total.sum(dim=2).sort(dim=1, descending=True, stable=True).indices[:, :heads]
    return take_rows(total, best).mean(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1)
