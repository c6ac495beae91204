"""FastVID's shares and merging: salient tokens of every frame, and anchors at regular steps that absorb the rest of a segment."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.rows import row_blocks, unit_rows
from tokenreduce.redundancy_trees import peak_scores
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
    most = max(1, int(given.centres.max()))
    at, there = order[gives, :most], torch.arange(most, device=device) < given.centres[gives, None]
    flat, unit = x.flatten(0, 1), unit_rows(x)
    candidates = unit[gives].gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    unit, seat = unit.flatten(0, 1), at + gives[:, None] * n
    total, members = torch.zeros(frames * n, x.shape[2], device=device), torch.zeros(frames * n, device=device)
    joins = torch.full((frames * n,), -1, device=device)
    following, rest = next_of(anchor, segment), (~salient).flatten().nonzero().flatten()
    spans, among = (
        torch.bincount(one, minlength=int(segment[-1]) + 1).tolist() for one in (segment[rest // n], segment[gives])
    )
    for own, a in zip(rest.split(spans), torch.arange(len(gives), device=device).split(among)):
        centres, seats, gone = candidates[a].flatten(0, 1), seat[a], ~there[a]
        for block in row_blocks(len(own), len(centres)) if len(a) else ():
            row = own[block, None]
            alike = (unit[own[block]] @ centres.mT).unflatten(1, seats.shape).masked_fill_(gone, -torch.inf)
            target = seats.T.gather(0, alike.argmax(dim=2))
            moves = ~((row // n == gives[a]) & centre.flatten()[row] & (sources == "sequential"))
            moved = row.expand_as(target)[moves]
            total.index_add_(0, target[moves], flat[moved])
            members.index_add_(0, target[moves], torch.ones_like(moved, dtype=members.dtype))
            here = gives[a] == following[row // n]
            joins[row.expand_as(target)[here]] = target[here]
    weight = (1 / (members + 1)).clamp_min(beta)
    mixed = weight[:, None] * flat + (1 - weight)[:, None] * total / members.clamp_min(1)[:, None]
    rows = torch.where((members > 0)[:, None], mixed, flat) * centre.flatten()[:, None]
    joins = torch.where(centre, torch.arange(frames * n, device=device).view(frames, n), joins.view(frames, n))
    return Absorbed(salient, centre, rows, joins)


def next_of(anchor: Tensor, segment: Tensor) -> Tensor:
    """(T,) long, the next frame from each on that is an ``anchor`` (T,); the last one of its ``segment`` where none follows."""
    index = torch.arange(len(anchor), device=anchor.device)
    here = torch.where(anchor, index, len(anchor))
    ahead = here.flip(0).cummin(dim=0).values.flip(0)
    last = torch.where(anchor, index, -1).cummax(dim=0).values
    inside = (ahead < len(anchor)) & (segment[ahead.clamp_max(len(anchor) - 1)] == segment)
    return torch.where(inside, ahead, last)
