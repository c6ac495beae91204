"""Windows of a patch grid that are alike become one row each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenreduce.kernels.top_k import top_k
from tokenreduce.model_facts import ModelFacts
from tokenreduce.schedules import can_merge_inside


def windows_to_merge(n: int, target: float, window: int) -> int:
    """Windows of side ``window`` to merge so that ``target`` patches of ``n`` are left, or a few more."""
    cells = window**2
    return min(max(math.floor((n - target) / (cells - 1) + 1e-9), 0), n // cells)


def merges_windows(facts: ModelFacts) -> bool:
    """Whether windows merge inside the tower of such a model where nothing is said: of units, any grid may come."""
    return can_merge_inside(facts) and facts.patches_per_token == 1


def check_windows(window: int, facts: ModelFacts) -> None:
    """Raise unless windows of side ``window`` can merge inside the tower of such a model; they must tile its patch grid."""
    if "encoder" not in facts.stages:
        raise ValueError(
            f"method='mustdrop' merges inside the vision encoder, which this {facts.family} model does not offer; "
            "pass merge=False to leave that stage out"
        )
    if facts.tower_grid is None:
        return
    height, width = facts.tower_grid
    if height % window or width % window:
        divisors = [w for w in range(2, min(height, width) + 1) if not (height % w or width % w)]
        hint = f"pass window={divisors[0]}, or " if divisors else "pass "
        raise ValueError(
            f"window={window} does not divide the {height}x{width} patch grid of this {facts.family} model; "
            f"allowed: {', '.join(map(str, divisors)) or 'none'}; {hint}merge=False to leave that stage out"
        )


def merged_windows(
    alike: Tensor, count: Tensor, height: int, width: int, window: int, prefix: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows after the ``count`` (B,) most alike windows of each image are merged.

    Order: prefix rows, merged windows by descending similarity ``alike`` (B, W) (ties: the lowest window), the other
    patches in raster order.

    Returns:
        Row (B, N) of each token; token (B, K) at which each row sits, the bottom-right one of a window; and which rows
        exist (B, K), None when all do. K is the largest number of rows in the batch.
    """
    device, n = alike.device, height * width
    cell = torch.arange(n, device=device)
    of_cell = cell // width // window * (width // window) + cell % width // window
    corner = (cell // width % window == window - 1) & (cell % width % window == window - 1)
    rank = top_k(alike, alike.shape[1]).argsort(dim=1)[:, of_cell]  # of the window of each patch
    merged = rank < count[:, None]
    single = (~merged).cumsum(dim=1) - 1 + count[:, None]
    lead = torch.arange(prefix, device=device).expand(len(alike), prefix)
    assign = torch.cat([lead, torch.where(merged, rank, single) + prefix], dim=1)
    rows = prefix + n - count * (window**2 - 1)
    k = int(rows.max())
    # every row is written once: by its only token, or by the corner of its window
    at = torch.where(torch.cat([lead < 0, merged & ~corner], dim=1), k, assign)
    token = torch.arange(prefix + n, device=device).expand_as(at)
    source = torch.zeros(len(alike), k + 1, dtype=torch.long, device=device).scatter_(1, at, token)[:, :k]
    valid = torch.arange(k, device=device) < rows[:, None]
    return assign, source, None if bool(valid.all()) else valid
