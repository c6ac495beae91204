"""A merged tower returns full width: which tokens of its pictures are duplicates, and which one of each stays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.groups import ImageGroup
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import DROPPED, PositionPolicy, Reduction
from tokenreduce.uploading import uploaded


def merged_group(
    group: ImageGroup,
    history: list[StageTrace],
    rows: list[list[int]],
    in_order: bool,
    positions: PositionPolicy,
    alike: bool,
) -> list[ImageGroup]:
    """``group`` after its tower rows ``rows`` (B, V) were merged as ``history`` tells.

    ``alike``: whether every row of every view stands for tokens.
    """
    patches = uploaded(group.layout.patches, group.seats.device)
    if len(rows) > 1 and not alike:
        single = [
            merged_group(group.rows([i]), history, [own], in_order, positions, alike) for i, own in enumerate(rows)
        ]
        return [one for found in single for one in found]
    index = uploaded(rows, group.seats.device)
    plans = [
        merged_tokens(p.assign.to(index.device)[index], p.source.to(index.device)[index], patches, alike)
        for p in history
    ]
    return _carried_out(group, history, plans, in_order, positions)


def merged_in_segments(
    group: ImageGroup, inside: list[list[StageTrace]], places: Tensor, in_order: bool, positions: PositionPolicy
) -> list[ImageGroup]:
    """``group`` after ``inside``, per image, was done to it in a tower that packs; ``places`` (N,) of its tokens there."""
    same = {tuple((p.layer, p.method, p.source.shape[1]) for p in own) for own in inside}
    if len(same) > 1:
        single = [
            merged_in_segments(group.rows([i]), [own], places, in_order, positions) for i, own in enumerate(inside)
        ]
        return [one for found in single for one in found]
    if not inside[0]:
        return [group]
    device = group.seats.device
    history = [
        replace(p[0], assign=torch.cat([x.assign for x in p]), source=torch.cat([x.source for x in p]))
        for p in zip(*inside)
    ]
    places = places.to(device, non_blocking=True)
    plans = [
        merged_tokens(p.assign.to(device)[:, None], p.source.to(device)[:, None], places, alike=True) for p in history
    ]
    return _carried_out(group, history, plans, in_order, positions)


def _carried_out(
    group: ImageGroup,
    history: list[StageTrace],
    plans: list[Reduction],
    in_order: bool,
    positions: PositionPolicy,
) -> list[ImageGroup]:
    """``group`` after the last of ``plans``, the others noted as what led there."""
    for p, plan in zip(history[:-1], plans):
        source = plan.source.sort(dim=1).values
        seats = group.columns.gather(1, source)
        group.history.append(replace(p, assign=plan.assign, seats=seats, source=plan.source))
    last, plan = history[-1], plans[-1]
    if in_order:
        source, order = plan.source.sort(dim=1)
        back = order.argsort(dim=1)
        gone = plan.assign < 0
        assign = back.gather(1, plan.assign.clamp_min(0)).masked_fill(gone, DROPPED)
        plan = replace(plan, source=source, assign=assign, in_order=True)
    return group.apply(replace(plan, positions=positions), "encoder", last.layer, last.method)


def merged_tokens(assign: Tensor, source: Tensor, patches: Tensor, alike: bool) -> Reduction:
    """The plan for the tokens of B pictures whose V views were merged each by itself.

    Args:
        assign: (B, V, P) row of its view that each patch went to; ``source``: (B, V, K) patch at which each row sits.
        patches: (N,) patch of each token, counted through all views. Unless ``alike``, B must be 1.
    """
    batch, views, area = assign.shape
    shift = torch.arange(views, device=assign.device)[:, None]
    flat = torch.where(assign < 0, DROPPED, assign + shift * source.shape[2]).flatten(1)[:, patches]
    at = (source + shift * area).flatten(1)
    n, k = len(patches), at.shape[1]
    token = torch.full((views * area,), -1, device=assign.device).scatter(0, patches, torch.arange(n, device=at.device))
    seat = token[at]
    if alike:
        return Reduction(source=seat, assign=flat)
    # a row whose own patch has no token sits at the first of its patches that has one; rows without any are gone
    first = torch.full((batch, k + 1), n, device=at.device)
    joined = torch.where(flat < 0, k, flat)
    first = first.scatter_reduce(1, joined, torch.arange(n, device=at.device).expand_as(flat), "amin")[:, :k]
    seat = torch.where(seat < 0, first, seat)
    there = first[0] < n
    return Reduction(source=seat[:, there], assign=(there.cumsum(0) - 1)[flat].masked_fill(flat < 0, DROPPED))


def in_patches(history: list[StageTrace], prefix: int, fronts: list[int] | None = None) -> list[StageTrace]:
    """``history`` counted in patches: ``prefix`` rows left out of full width, and ``fronts`` of those left each time; None: as
    many."""
    found = []
    for passed, front in zip(history, fronts or [prefix] * len(history), strict=True):
        assign = (passed.assign[:, prefix:] - front).clamp_min(-1)
        source = (passed.source[:, front:] - prefix).clamp_min(-1)
        found.append(replace(passed, assign=assign, seats=source.sort(dim=1).values, source=source))
    return found
