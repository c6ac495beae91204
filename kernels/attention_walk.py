"""A walk along attention: where the mass ends that starts evenly on all tokens and follows the map a few times."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_received import CHUNK, seen_by
from tokenreduce.kernels.attention_row import attention_weights, obstacle


@dispatch.operation
def attention_walk(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    steps: int,
    temperature: float = 1.0,
    visible: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = False,
    place: Tensor | None = None,
    window: int | None = None,
    query_mask: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Root mean square over heads of d M^steps, with M the softmax of the logits divided by ``temperature``, head by head,
    and d even over the real queries.

    The queries are the last Q of the N keys. Mass that reaches an earlier key, of which no query is known, stays there
    and is counted there. M is made ``chunk`` rows at a time in every step, so memory is O(B * H * chunk * N).

    Args:
        query: (B, H, Q, d); ``key``: (B, H_kv, N, d), Q <= N, H_kv divides H.
        scale, visible, softcap, causal, place, window: as of ``attention_received``; the soft cap comes before the temperature.
        steps: passes along M, at least 0.
        temperature: tau > 0; the lower, the nearer a row is to its largest weight alone.
        query_mask: (B, Q) bool, queries that mass starts from and passes on; None: all.
        chunk: queries per block.

    Returns:
        (B, N) float32. Mass of every head sums to 1, unless it reaches a query outside ``query_mask``.
    """
    batch, heads, num_queries, _ = query.shape
    n = key.shape[2]
    past = n - num_queries
    real = torch.ones(batch, num_queries, device=query.device) if query_mask is None else query_mask.float()
    start = real / real.sum(dim=1, keepdim=True).clamp_min(1)
    mass = torch.cat([start.new_zeros(batch, past), start], dim=1)[:, None].expand(-1, heads, -1)
    scale, softcap = scale / temperature, None if softcap is None else softcap / temperature
    fast = dispatch.kernel("attention_walk", query, key, limit=obstacle(query, key, softcap), graph=True)
    if fast is not None:
        mass = fast.attention_walk(
            query, key, scale, mass, real, steps=steps, visible=visible, causal=causal, place=place, window=window
        )
        return mass.square().mean(dim=1).sqrt()
    for _ in range(steps):
        leaving = mass[:, :, past:] * real[:, None]
        arrived = torch.cat([mass[:, :, :past], torch.zeros_like(leaving)], dim=2)
        for first in range(0, num_queries, chunk):
            rows = slice(first, min(first + chunk, num_queries))
            seen = seen_by(rows, query, key, visible, causal=causal, place=place, window=window)
            weights = attention_weights(query[:, :, rows], key, scale, visible=seen, softcap=softcap)
            arrived += torch.matmul(leaving[:, :, None, rows], weights)[:, :, 0]
        mass = arrived
    return mass.square().mean(dim=1).sqrt()
