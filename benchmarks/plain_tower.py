"""ToMe in a DINOv2 of transformers as a plain loop: one image, no hooks, no checks, no provenance; what a release would run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run(tower: Any, pixels: Tensor, counts: Sequence[int]) -> Tensor:
    """The features (1, N - sum(counts), D) of ``pixels`` (1, 3, height, width) when block i merges ``counts[i]`` pairs, with
    proportional attention; the merged rows are in another order than the toolkit's."""
    x = tower.embeddings(pixels)
    size, merged = torch.ones(1, x.shape[1], 1), False
    for block, r in zip(tower.encoder.layer, counts, strict=True):
        own = block.attention
        y = block.norm1(x)
        query, key, value = (
            project(y).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        bias = size.log().mT[:, None] if merged else None
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + block.layer_scale1(own.o_proj(seen.transpose(1, 2).flatten(2)))
        if r:
            x, size = merge(key.mean(dim=1), x, size, r)
            merged = True
        x = x + block.layer_scale2(block.mlp(block.norm2(x)))
    return tower.layernorm(x)


def merge(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching of even rows with odd ones by ``metric`` (1, N, C); row 0 stays."""
    metric = F.normalize(metric, dim=-1)
    cosine = metric[:, ::2] @ metric[:, 1::2].mT
    cosine[:, 0] = -math.inf
    best, partner = cosine.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    alone, leaving = order[:, r:].sort(dim=1).values, order[:, :r]
    joined = partner[..., None].gather(1, leaving)

    def together(rows: Tensor) -> Tensor:
        even, odd, width = rows[:, ::2], rows[:, 1::2], rows.shape[-1]
        moved = even.gather(1, leaving.expand(-1, -1, width))
        stay = even.gather(1, alone.expand(-1, -1, width))
        return torch.cat([stay, odd.scatter_reduce(1, joined.expand(-1, -1, width), moved, "sum")], dim=1)

    x, size = together(x * size), together(size)
    return x / size, size
