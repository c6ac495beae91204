"""Rows of tokens, as every operation on a CPU handles them: chosen, brought to length 1, in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPSILON = 1e-12
BLOCK = 2**18  # numbers of a table that are held at once
LOWEST = 64  # rows of a block at least: lower products run below full speed


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, K) long, each in [0, N), of ``x`` (B or 1, N, ...); any dtype, differentiable.

    On a CPU whole rows move, several times faster than a gather of single numbers.

    Errors: ``ValueError`` for an ``index`` of another batch.
    """
    if index.ndim != 2 or len(x) not in (1, len(index)):
        raise ValueError(f"take_rows: index has shape {tuple(index.shape)}; allowed: ({len(x)}, K)")
    if x.device.type != "cpu":
        one_by_one = index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return x.expand(len(index), *x.shape[1:]).gather(1, one_by_one)
    batch, n = x.shape[:2]
    if batch > 1:
        inside = (index >= 0) & (index < n)  # a row of a neighbour's is as wrong as none
        index = torch.where(inside, index + torch.arange(0, batch * n, n)[:, None], batch * n)
        x = x.flatten(0, 1)[None]
    return x[0].index_select(0, index.flatten()).unflatten(0, index.shape)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` (B, N, C) at length 1, in float32 and without a graph; rows shorter than 1e-12 are divided by that."""
    x = x.detach().float()
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(EPSILON)


def row_blocks(rows: int, columns: int, chunk: int | None = None, least: int = LOWEST) -> Iterator[slice]:
    """Slices of ``chunk`` rows of a table, by default as many as hold about 262,144 numbers, at least ``least``."""
    height = chunk or max(least, BLOCK // max(columns, 1))
    return (slice(top, min(top + height, rows)) for top in range(0, rows, height))
