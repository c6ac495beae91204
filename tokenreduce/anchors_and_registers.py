"""Anchors, their neighbours and registers, to an exact number, and tokens close to the text: mathematics of HiPrune."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.reduction import PositionPolicy, Reduction

ROLES = ("dropped", "anchor", "buffer", "register")


def select(
    object_score: Tensor,
    deep_score: Tensor,
    k: int,
    source: Tensor,
    layout: Layout,
    *,
    alpha: float = 0.1,
    border: str = "clamp",
    parity: str = "paper",
    positions: PositionPolicy = "keep",
) -> Reduction:
    """Section 4: (B, N) object and deep scores of tokens sitting at ``source`` (B, N) of ``layout`` -> K survivors.

    One sort by score and one by role instead of variable-size sets: anchors first, then buffers by object score, then
    registers by deep score.
    """
    object_score, deep_score = object_score.float(), deep_score.float()
    n = object_score.shape[1]
    anchor_index = top_k(object_score, round(k * alpha / 5))
    anchor = torch.zeros_like(object_score, dtype=torch.bool).scatter_(1, anchor_index, True)
    buffer = neighbours(anchor_index, source, layout, border) & ~anchor
    role = torch.where(anchor, 1, torch.where(buffer, 2, 3))
    score = torch.where(anchor | buffer, object_score, deep_score)
    order = top_k(score, n)
    keep = order.gather(1, top_k(-role.gather(1, order), k))
    kept = torch.zeros_like(anchor).scatter_(1, keep, True)
    if parity == "release":
        return _released((anchor | buffer) & kept, deep_score, k, role, positions)
    return Reduction.select(keep, n, role=role * kept, role_names=ROLES, score=score, positions=positions)


def neighbours(index: Tensor, source: Tensor, layout: Layout, border: str) -> Tensor:
    """(B, N) bool: tokens at the four grid neighbours of the tokens ``index`` (B, A)."""
    height, width, frame = layout.height, layout.width, layout.height * layout.width
    cells = layout.frames * frame
    cell_of = torch.arange(cells) if layout.cells is None else torch.tensor(layout.cells)
    cell = cell_of.to(source.device, non_blocking=True)[source]
    at = cell.gather(1, index)
    flag = torch.zeros(source.shape[0], cells + 1, dtype=torch.bool, device=source.device)
    place = at % frame
    column, row = place % width, place // width
    for step, inside in ((-1, column > 0), (1, column < width - 1), (-width, row > 0), (width, row < height - 1)):
        clamped = at - place + (place + step).clamp(0, frame - 1)
        flag.scatter_(1, clamped if border == "clamp" else torch.where(inside, at + step, cells), True)
    return flag.gather(1, cell)


def _released(chosen: Tensor, deep_score: Tensor, k: int, role: Tensor, positions: PositionPolicy) -> Reduction:
    """The released exclusion rule: ``score - 1``; registers that fall on chosen tokens are lost, counts may differ."""
    registers = deep_score - chosen.float()
    order = registers.sort(dim=1, descending=True, stable=True).indices
    place = torch.arange(order.shape[1], device=order.device)
    room = (k - chosen.sum(dim=1, keepdim=True)).clamp_min(0)
    kept = chosen | torch.zeros_like(chosen).scatter_(1, order, place < room)
    return Reduction.where(kept, role=role * kept, role_names=ROLES, positions=positions)


def with_closest(plan: Reduction, close: Tensor, more: int) -> Reduction:
    """``plan``, and of the tokens that it drops the ``more`` of highest ``close`` (B, N), in a role of their own."""
    assert plan.role is not None
    added = top_k(close.masked_fill(plan.role > 0, -torch.inf), more)
    role = plan.role.scatter(1, added, len(ROLES))
    both = Reduction.select(torch.cat([plan.source, added], dim=1), close.shape[1], positions=plan.positions)
    return replace(both, role=role, role_names=(*ROLES, "close to the text"), score=plan.score)
