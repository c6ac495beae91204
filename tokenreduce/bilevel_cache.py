"""A video in the cache at two levels: frames of blocks that matter whole, of the others the means of runs of tokens.

Source: Qin et al., "Video-XL-2: Towards Very Long-Video Understanding Through Task-Aware KV Sparsification", arXiv 2506.19225.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.reduction import Reduction


def whole_blocks(frames: int, chunk: int, units: Tensor) -> Tensor:
    """(B, blocks) bool: of the blocks of ``chunk`` frames, the first, the last, and those of the relevant ``units`` (B, U) long.

    A unit is two frames and belongs to the block of its first; units beyond the video are ignored. No unit: every block.
    """
    blocks = -(-frames // chunk)
    if not units.shape[1]:
        return torch.ones(len(units), blocks, dtype=torch.bool, device=units.device)
    whole = torch.zeros(len(units), blocks + 1, dtype=torch.bool, device=units.device)
    whole.scatter_(1, (2 * units // chunk).clamp_max(blocks), True)
    whole[:, [0, blocks - 1]] = True
    return whole[:, :-1]


def mean_of_units(score: Tensor, frame: Tensor, frames: int) -> Tensor:
    """(B, U) mean of ``score`` (B, N) over the tokens of every two frames, where these are ``frame`` (B, N) long; none: -inf."""
    unit = frame // 2
    total = score.new_zeros(len(score), -(-frames // 2)).scatter_add_(1, unit, score)
    count = torch.zeros_like(total).scatter_add_(1, unit, torch.ones_like(score))
    return (total / count).masked_fill(count == 0, -torch.inf)


def pooled(frame: Tensor, whole: Tensor, step: int) -> Reduction:
    """Tokens of ``frame`` (B, N) long, ascending, become means of runs of ``step`` where they are not ``whole`` (B, N) bool.

    What is left of a frame beyond whole runs is dropped; a frame of fewer tokens is one run.
    """
    number = (frame.diff(dim=1, prepend=frame[:, :1]) != 0).cumsum(dim=1)  # of the frames that have a token left
    size = torch.zeros_like(frame).scatter_add_(1, number, torch.ones_like(frame))
    first = size.cumsum(dim=1) - size
    rank = torch.arange(frame.shape[1], device=frame.device) - first.gather(1, number)
    runs = (size // step).clamp_min(1).gather(1, number)
    stays = whole | (rank // step < runs)
    head = whole | (stays & (rank % step == 0))
    plan = Reduction.where(head)
    assign = torch.where(stays, head.cumsum(dim=1) - 1, -1)
    return replace(plan, assign=assign, merges=True, in_order=False)
