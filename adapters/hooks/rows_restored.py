"""Full width behind the last block where rows are made again of those that are left, instead of copied."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.unit_rows import UnitRows
from tokenreduce.kernels.rows import take_rows
from tokenreduce.reduction import Reduction


def made_of(made: Tensor | None, assign: Tensor, reduction: Reduction) -> Tensor | None:
    """(B, N0, K) float32, how each unit of the unmerged tower is made of the rows that ``reduction`` leaves.

    Args:
        made: (B, N0, N) the same of the rows that it found; None: each unit is a copy of row ``assign`` (B, N0), -1 is gone.

    Returns:
        None where units are still copies, as they are until a plan says how they are made again.
    """
    share = reduction.restore
    if share is None:
        if made is None:
            return None
        rows = torch.arange(reduction.num_kept, device=assign.device)
        share = reduction.assign[..., None] == rows
    if made is not None:
        return made @ share.float()
    return take_rows(share.float(), assign.clamp_min(0)) * (assign >= 0)[..., None]


def restored(made: Tensor, units: UnitRows, rows: Tensor) -> Tensor:
    """The rows (B, n0, D) of the unmerged tower, ``made`` (B, N0, K) of the units of ``rows`` (B, n, D); sums in float32."""
    whole = units.parted((made @ units.joined(rows).float()).to(rows.dtype))
    return whole if units.back is None else whole[:, units.back]
