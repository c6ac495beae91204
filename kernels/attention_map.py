"""What a whole attention map says of each token, head by head, without the map."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_row import Heads, attention_weights
from tokenreduce.kernels.rows import row_blocks

Of = Literal["cls", "received", "diagonal", "likeness"]


@dispatch.operation
def attention_map(
    query: Tensor,
    key: Tensor,
    scale: float,
    of: Of,
    *,
    heads: Heads = "mean",
    bias: Tensor | None = None,
    visible: Tensor | None = None,
    query_mask: Tensor | None = None,
    cuts: Tensor | None = None,
) -> Tensor:
    """One number per token of the softmax attention A (B, H, N, N) of N tokens to each other.

    Blocks of rows bound memory: O(B * H * N * 64). There is no kernel of its own: it is two matrix products.

    Args:
        query: (B, H, N, d); ``key``: (B, H_kv, N, d); H_kv divides H; ``scale``: factor on the dot product.
        of: ``cls``, A[0, j]; ``received``, the sum over i of A[i, j]; ``diagonal``, A[j, j]; ``likeness``, the sum over i of the
            cosine of rows i and j of the map that ``heads`` reduced, 0 where row j does not count.
        heads: ``mean`` or ``max`` over heads, of these numbers.
        bias: (B, N) float added to the logits of every key; ``visible``: (B, N) bool, keys that are seen; None: all.
        query_mask: (B, N) bool, rows that count; None: all.
        cuts: (S + 1,) borders of the segments of one packed sequence, B = 1, which attend within themselves; None: none.

    Returns:
        (B, N) float32.
    """
    if cuts is not None:
        found = []
        for first, last in pairwise(cuts.tolist()):
            if first == last:
                continue
            own = slice(first, last)
            parts = {"bias": bias, "visible": visible, "query_mask": query_mask}
            given = {name: None if x is None else x[:, own] for name, x in parts.items()}
            found.append(attention_map(query[:, :, own], key[:, :, own], scale, of, heads=heads, **given))
        return torch.cat(found, dim=1)
    batch, num_heads, n, _ = query.shape

    def reduced(x: Tensor) -> Tensor:
        return x.mean(dim=1) if heads == "mean" else x.amax(dim=1)

    def weights(rows: slice) -> Tensor:
        found = attention_weights(query[:, :, rows], key, scale, visible=visible, bias=bias)
        return found if query_mask is None else found * query_mask[:, None, rows, None]

    if of == "cls":
        return reduced(weights(slice(1)))[:, 0]
    blocks = list(row_blocks(n, num_heads * n))
    if of == "diagonal":
        return torch.cat([reduced(weights(b)[..., b].diagonal(dim1=2, dim2=3)) for b in blocks], dim=1)
    if of == "received":
        total = query.new_zeros(batch, num_heads, n, dtype=torch.float32)
        for block in blocks:
            total += weights(block).sum(dim=2)
        return reduced(total)
    total = query.new_zeros(batch, n, dtype=torch.float32)
    for block in blocks:
        total += F.normalize(reduced(weights(block)), dim=-1).sum(dim=1)
    return torch.cat([(F.normalize(reduced(weights(b)), dim=-1) @ total[..., None])[..., 0] for b in blocks], dim=1)
