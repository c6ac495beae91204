"""FastVID's shares and merging: salient tokens of every frame, and anchors at regular steps that absorb the rest of a segment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.rows import row_blocks, unit_rows
from tokenreduce.redundancy_trees import peak_scores
from tokenreduce.uploading import uploaded
from tokenreduce.video_segments import shared_within

Sources = Literal["parallel", "sequential"]


class Shares(NamedTuple):
    """(T,) long each: tokens of a frame that stay because they are salient, and centres that it gives."""

    salient: Tensor
    centres: Tensor


def summed(group: Tensor, values: Tensor) -> Tensor:
    """(G,) ``values`` (T,) of each group added up."""
    return torch.zeros(int(group[-1]) + 1, dtype=values.dtype, device=values.device).index_add_(0, group, values)


def anchors(segment: Tensor, valid: Tensor, period: int) -> Tensor:
    """(T,) bool, every ``period``-th of the ``valid`` (T,) frames of a segment, counted from its end."""
    behind = valid.long().flip(0).cumsum(dim=0).flip(0)  # valid frames from here on
    last = summed(segment, valid.long()).flip(0).cumsum(dim=0).flip(0)
    after = torch.cat([last[1:], last.new_zeros(1)])[segment]
    return valid & ((behind - 1 - after) % period == 0)


def shares(budget: Tensor, segment: Tensor, valid: Tensor, n: int, context: float, period: int) -> Shares:
    """``budget`` (T,) of all frames of a segment shared: the part ``context`` evenly among its anchors, the last ones more, the
    rest evenly among its ``valid`` frames, the first ones more. What anchors of ``n`` tokens cannot give goes to salient ones.
    """
    anchor, total = anchors(segment, valid, period), summed(segment, budget)
    part = (total.double() * context + 1e-9).long()
    centres = shared_last(segment, anchor, part)
    salient = shared_within(segment, valid.long() * n, total - part)
    capped = torch.minimum(centres, n - salient) * anchor
    missing = total - summed(segment, salient) - summed(segment, capped)
    return Shares(salient + shared_within(segment, (n - salient - capped) * valid, missing), capped)


def shared_last(segment: Tensor, among: Tensor, total: Tensor) -> Tensor:
    """(T,) long: ``total`` (S,) of each segment evenly ``among`` (T,) some of its frames, the last ones one more."""
    count = summed(segment, among.long()).clamp_min(1)
    number = among.long().flip(0).cumsum(dim=0).flip(0)
    last = summed(segment, among.long()).flip(0).cumsum(dim=0).flip(0)
    from_end = number - 1 - torch.cat([last[1:], last.new_zeros(1)])[segment]
    return torch.where(among, (total // count)[segment] + (from_end < (total % count)[segment]), 0)


class Absorbed(NamedTuple):
    """Attributes:
    salient: (T, N) bool; centre: (T, N) bool.
    rows: (T * N, D) float32, what centres become; zeros elsewhere.
    joins: (T, N) long, the flat centre that a token is nearest to among those of the next anchor, -1: none.
    """

    salient: Tensor
    centre: Tensor
    rows: Tensor
    joins: Tensor


def absorbed(
    x: Tensor, saliency: Tensor, segment: Tensor, given: Shares, *, neighbours: int, beta: float, sources: Sources
) -> Absorbed:
    """Each centre of ``x`` (T, N, D) mixed with the mean of the tokens of its segment that resemble no other of its anchor more.

    ``sources``: ``parallel``, every token that is not salient, so that all are averaged once per anchor; ``sequential``, the
    anchor's own centres left out.
    """
    frames, n, _ = x.shape
    x, device = x.float(), x.device
    rank = saliency.float().sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    salient = rank < given.salient[:, None]
    score = torch.full((frames, n), -torch.inf, device=device)
    anchor = given.centres > 0
    gives = anchor.nonzero().flatten()
    for block in row_blocks(len(gives), n * n, least=1):
        own = gives[block]
        score[own] = peak_scores(x[own], ~salient[own], torch.full_like(own, neighbours))[0]
    order = score.sort(dim=1, descending=True, stable=True).indices
    centre = (order.argsort(dim=1) < given.centres[:, None]) & ~salient
    most, absent = max(1, int(given.centres.max())), frames * n
    at = order[gives, :most]
    there = torch.arange(most, device=device) < given.centres[gives, None]
    at = torch.where(there, at, at[:, :1])  # the first again, which nothing is nearer to
    flat, unit, seat = x.flatten(0, 1), unit_rows(x).flatten(0, 1), at + gives[:, None] * n
    rest = torch.arange(absent, device=device).view(frames, n).masked_fill(salient, absent).sort(dim=1).values
    rest = rest[:, : n - int(given.salient.min())]
    last = seat.numel()
    total, members = torch.zeros(last + 1, x.shape[2], device=device), torch.zeros(last + 1, device=device)
    joins = torch.full((absent + 1,), -1, device=device)
    number = (anchor.cumsum(dim=0) - 1)[next_of(anchor, segment)]
    for frame, a in alike(segment, anchor):
        seats, row = seat[a], rest[frame].flatten(1)  # (S, A, M), (S, L * R)
        centres = unit[seats.flatten(1)]
        for some, part in blocks_of(len(a), row.shape[1], seats[0].numel(), a.shape[1] * x.shape[2]):
            own = row[some, part]
            near = own.clamp_max(absent - 1)
            cosine = torch.bmm(rows_at(unit, near), centres[some].mT).unflatten(2, seats.shape[1:])
            target = cosine.max(dim=3).indices + a[some, None] * most
            ahead = (number[near // n] - a[some, :1])[..., None].clamp(0, a.shape[1] - 1)
            joins[own] = seat.view(-1)[target.gather(2, ahead)[..., 0]]
            stays = (own == absent)[..., None]
            if sources == "sequential":
                stays = stays | (
                    centre.flatten()[near][..., None] & (gives[a[some]][:, None] == (near // n)[..., None])
                )
            target = target.masked_fill(stays, last).flatten()
            moved = rows_at(flat, near)[:, :, None].expand(-1, -1, a.shape[1], -1).reshape(len(target), -1)
            total.index_add_(0, target, moved)
            members.index_add_(0, target, torch.ones_like(target, dtype=members.dtype))
    made = there.flatten().nonzero().flatten()
    place, members, total = seat.flatten()[made], members[made, None], total[made]
    weight = (1 / (members + 1)).clamp_min(beta)
    mixed = weight * flat[place] + (1 - weight) * total / members.clamp_min(1)
    rows = torch.zeros_like(flat)
    rows[place] = torch.where(members > 0, mixed, flat[place])
    joins[place] = place
    return Absorbed(salient, centre, rows, joins[:-1].view(frames, n))


def alike(segment: Tensor, anchor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Segments of as many frames and anchors each together: their frames (S, L), and which of all anchors are theirs (S, A)."""
    size, among = torch.bincount(segment), summed(segment, anchor.long())
    start, first = size.cumsum(dim=0) - size, among.cumsum(dim=0) - among
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(zip(size.tolist(), among.tolist())):
        shapes.setdefault(shape, []).append(i)
    for (frames, anchors), members in shapes.items():
        if anchors:
            own = uploaded(members, segment.device)[:, None]
            index = torch.arange(max(frames, anchors), device=segment.device)
            yield start[own] + index[:frames], first[own] + index[:anchors]


def blocks_of(count: int, rows: int, columns: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Which of ``count`` tables of ``columns``, and which ``rows`` of them, are looked at together; ``width`` goes with a row."""
    wide = max(columns, width)
    for some in row_blocks(count, rows * wide, least=1):
        for part in row_blocks(rows, (some.stop - some.start) * wide):
            yield some, part


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """(S, R, D) rows of ``x`` (N, D)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def next_of(anchor: Tensor, segment: Tensor) -> Tensor:
    """(T,) long, the next frame from each on that is an ``anchor`` (T,); the last one of its ``segment`` where none follows."""
    index = torch.arange(len(anchor), device=anchor.device)
    here = torch.where(anchor, index, len(anchor))
    ahead = here.flip(0).cummin(dim=0).values.flip(0)
    last = torch.where(anchor, index, -1).cummax(dim=0).values
    inside = (ahead < len(anchor)) & (segment[ahead.clamp_max(len(anchor) - 1)] == segment)
    return torch.where(inside, ahead, last)
