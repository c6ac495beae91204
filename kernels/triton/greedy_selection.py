"""Kernels of ``greedy_selection``: one launch per token taken, no synchronisation between device and host.

A launch finds out who was best after the last one (every program reduces the same short list of block maxima), then lowers
the gains of its own rows and leaves their maximum for the next launch. Rows stream from the level-2 cache: K * N * C products
in all, and nothing of N x N.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenreduce.kernels.triton.bipartite_matching import bipartite_matching
from tokenreduce.kernels.triton.common import addressable, block, inverse_norm, tile


def max_min_selection(x: Tensor, k: int, weight: Tensor | None, first: Tensor | None) -> Tensor:
    """As the reference."""
    x = addressable(x)
    if first is not None:
        gain = torch.zeros(x.shape[:2], device=x.device).scatter_(1, first[:, None], 1.0)
    else:
        gain = (1 - bipartite_matching(x, x, others_only=True)[0]).clamp_min_(0)
        gain = gain if weight is None else gain * weight
    return _select(x, gain, k, 0.0, None if weight is None else weight.contiguous(), dpp=False)


def dpp_selection(x: Tensor, relevance: Tensor, k: int, resolution: float) -> Tensor:
    """As the reference."""
    x, relevance = addressable(x), relevance.detach().float().contiguous()
    return _select(x, relevance.square() * (x != 0).any(dim=-1), k, resolution, relevance, dpp=True)


def _select(x: Tensor, gain: Tensor, k: int, resolution: float, weight: Tensor | None, *, dpp: bool) -> Tensor:
    """Take ``k`` tokens by ``gain`` (B, N), which is used up; ``weight`` (B, N) is of distances, or the DPP's relevance."""
    batch, n, channels = x.shape
    rows = block(triton.cdiv(n, 256), 16, 256)
    blocks = triton.cdiv(n, rows)
    taken = torch.empty(batch, k, dtype=torch.long, device=x.device)
    top, place = gain.max(dim=1)
    floor = top * resolution
    # what the last launch found: [turn, image, block] maxima of the gains, and of the relevance of what is left
    best = torch.full((2, batch, blocks), -torch.inf, device=x.device)
    where = torch.zeros(2, batch, blocks, dtype=torch.long, device=x.device)
    best[0, :, 0], where[0, :, 0] = top, place
    spare_best, spare_where = best.clone(), where.clone()
    factor = best
    if weight is not None and dpp:
        spare_best[0, :, 0], spare_where[0, :, 0] = weight.max(dim=1)
        factor = torch.empty(batch, k, n, dtype=torch.float32, device=x.device)
    inverse = inverse_norm(x)
    gain = gain.contiguous()
    with torch.cuda.device_of(x):
        for step in range(k):
            _take[(blocks, batch)](
                x, inverse, gain, gain if weight is None else weight, factor, floor, best, where, spare_best, spare_where,
                taken, step, n, k, blocks, channels, x.stride(0), x.stride(1), DPP=dpp, WEIGHTED=weight is not None,
                ROWS=rows, BLOCKS=triton.next_power_of_2(blocks), STEP=block(channels, 16, 256), PAST=32,
            )  # fmt: skip
    return taken


@triton.jit(do_not_specialize=["step"])
def _take(
    x, inverse, gain, weight, factor, floor, best, where, spare_best, spare_where, taken, step, n, k, blocks, channels,
    batch_stride, row_stride, DPP: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    STEP: tl.constexpr, PAST: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    turn = ((step % 2) * tl.num_programs(1) + b) * blocks
    value, j = winner(best + turn, where + turn, blocks, BLOCKS)
    live = value > tl.load(floor + b)
    if DPP:
        _, spare = winner(spare_best + turn, spare_where + turn, blocks, BLOCKS)
        j = tl.where(live, j, spare)
    tl.store(taken + b * k + step, j, mask=own == 0)

    rows = own.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    cosine = tl.zeros([ROWS], tl.float32)
    for start in range(0, channels, STEP):
        c = start + tl.arange(0, STEP)
        one = tl.load(x + b * batch_stride + j * row_stride + c, mask=c < channels, other=0.0).to(tl.float32)
        many = tile(x + b * batch_stride, rows, n, row_stride, start, channels, STEP).to(tl.float32)
        cosine += tl.sum(many * one[None, :], axis=1)
    cosine *= tl.load(inverse + b * n + rows, mask=inside, other=0.0) * tl.load(inverse + b * n + j)

    old = tl.load(gain + b * n + rows, mask=inside, other=float("-inf"))
    if DPP:
        r = tl.load(weight + b * n + rows, mask=inside, other=0.0)
        share = cosine * r * tl.load(weight + b * n + j)
        past = factor + b * k * n
        for first in range(0, step, PAST):
            at = (first + tl.arange(0, PAST)).to(tl.int64)
            here = (at < step)[:, None]
            before = tl.load(past + at[:, None] * n + rows[None, :], mask=here & inside[None, :], other=0.0)
            chosen = tl.load(past + at * n + j, mask=at < step, other=0.0)
            share -= tl.sum(before * chosen[:, None], axis=0)
        share = tl.where(live, share / tl.sqrt(tl.where(live, value, 1.0)), 0.0)
        tl.store(past + step.to(tl.int64) * n + rows, share, mask=inside)
        new = old - share * share
    else:
        distance = tl.maximum(1.0 - cosine, 0.0)
        if WEIGHTED:
            distance *= tl.load(weight + b * n + rows, mask=inside, other=0.0)
        # the first gain was the distance to any token; from now on it is that to the tokens taken
        new = tl.where(step == 0, distance, tl.minimum(old, distance))
    new = tl.where((rows == j) | (old == float("-inf")), float("-inf"), new)
    tl.store(gain + b * n + rows, new, mask=inside)

    turn = (((step + 1) % 2) * tl.num_programs(1) + b) * blocks + own
    top, at = tl.max(new, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + turn, top)
    tl.store(where + turn, own.to(tl.int64) * ROWS + at)
    if DPP:
        left = tl.where(new == float("-inf"), float("-inf"), r)
        top, at = tl.max(left, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(spare_best + turn, top)
        tl.store(spare_where + turn, own.to(tl.int64) * ROWS + at)


@triton.jit
def winner(best, where, blocks, BLOCKS: tl.constexpr):
    """The highest block maximum and its row; of equal ones the lowest block's."""
    i = tl.arange(0, BLOCKS)
    value, at = tl.max(
        tl.load(best + i, mask=i < blocks, other=float("-inf")),
        axis=0, return_indices=True, return_indices_tie_break_left=True,
    )  # fmt: skip
    return value, tl.load(where + at)
