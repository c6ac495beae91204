"""Trees of look-alikes through time: every token joins its most similar one of the frame before; what is left is thinned."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.kernels.density_peaks import nearest_of_lower, squared_distances
from tokenreduce.kernels.rows import row_blocks, unit_rows
from tokenreduce.video_segments import rank_within

NEIGHBOURS = 7
LEAST = -1 + 1e-6  # of a threshold: what has no parent stays


class Compressed(NamedTuple):
    """Of one video: ``assign`` (T * N,), ``source`` (K,) ascending, ``rows`` (K, D) float32, ``picked`` (T, N) bool."""

    assign: Tensor
    source: Tensor
    rows: Tensor
    picked: Tensor


class Trees(NamedTuple):
    """Attributes:
    root: (T, N) long, flat token that stands for each token; itself where it stays.
    rows: (T * N, D) float32, what the tokens of each root become together; zeros elsewhere.
    """

    root: Tensor
    rows: Tensor


def parents(x: Tensor, apart: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The best cosine (T, N) of each token of ``x`` (T, N, D) with one of the frame before, and which (T, N); ties: the first.

    -1 in frames that are ``first`` (T,) of a segment, and where either of the two is ``apart`` (T, N).
    """
    frames, n, _ = x.shape
    unit = unit_rows(x)
    best, at = unit.new_full((frames, n), -1.0), torch.zeros(frames, n, dtype=torch.long, device=x.device)
    for block in row_blocks(frames - 1, n * n, least=1):
        now, before = slice(block.start + 1, block.stop + 1), block
        alike = unit[now] @ unit[before].mT
        alike.masked_fill_(apart[before, None], -1.0)
        best[now], at[now] = alike.max(dim=2)
    return best.masked_fill(first[:, None] | apart, -1.0), at


def merging(best: Tensor, segment: Tensor, tau: float, keep: Tensor) -> Tensor:
    """(T, N) bool, tokens that join their parent: those above ``tau``, or in a segment that would keep fewer than ``keep`` (S,)
    tokens, above the value that leaves as many and one."""
    frames, n = best.shape
    group = segment[:, None].expand(frames, n).flatten()
    size = torch.bincount(group, minlength=len(keep))
    above = best.flatten() > tau
    short = size - torch.zeros_like(size).index_add_(0, group, above.long()) < keep
    rank = rank_within(group, best.flatten())
    at = rank == (size - keep - 1)[group]  # one token of each segment
    limit = best.new_full((len(keep),), -1.0).index_put((group[at],), best.flatten()[at]).clamp_min(LEAST)
    threshold = torch.where(short, limit, torch.full_like(limit, tau))
    return best > threshold[segment][:, None]


def grown(x: Tensor, joins: Tensor, parent: Tensor, count: str) -> Trees:
    """Every token of ``x`` (T, N, D) that ``joins`` (T, N) added to its ``parent`` (T, N) in the frame before, frame by frame.

    A row is its sum divided by one and the number of tokens that join it directly (``direct``), or by all it stands for.
    """
    frames, n, channels = x.shape
    own = torch.arange(frames * n, device=x.device).view(frames, n)
    up = torch.where(joins, own - own % n - n + parent, own).flatten()
    root = up
    for _ in range(frames.bit_length()):
        root = root[root]
    total = torch.zeros(frames * n, channels, device=x.device).index_add_(0, root, x.flatten(0, 1).float())
    members = torch.bincount(root if count == "subtree" else up, minlength=frames * n)
    return Trees(root.view(frames, n), total / members.clamp_min(1)[:, None])


def thinned(rows: Tensor, there: Tensor, centres: Tensor) -> Tensor:
    """(T, N) long, the place in its frame that each row joins: its own where it is a centre, -1 where there is none.

    Density peaks of the ``rows`` (T, N, D) that are ``there`` (T, N), ``centres`` (T,) of every frame: k = min(centres, 7)
    nearest rows, itself included; distance to the nearest row that is strictly denser, or the largest one of the frame; of
    equal scores the lowest index wins.
    """
    width = max(1, int(there.sum(dim=1).max()))
    order = (~there).to(torch.uint8).sort(dim=1, stable=True).indices[:, :width]
    valid = there.gather(1, order)
    joined = torch.full_like(order, -1)
    for block in row_blocks(len(rows), width * width, least=1):
        own = order[block]
        x = rows[block].gather(1, own[..., None].expand(-1, -1, rows.shape[2]))
        nearest = _peaks(x, valid[block], centres[block])
        joined[block] = torch.where(nearest < 0, -1, own.gather(1, nearest.clamp_min(0)))
    found = torch.full_like(there, -1, dtype=torch.long)
    return found.scatter(1, order, joined)


def _peaks(x: Tensor, valid: Tensor, centres: Tensor) -> Tensor:
    """(F, M) long, the centre that each valid row of ``x`` (F, M, D) joins, -1: none."""
    score, far = peak_scores(x, valid, centres.clamp(1, NEIGHBOURS))
    rank = score.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    centre = (rank < centres[:, None]) & valid
    best, nearest = far.masked_fill(~centre[:, None], torch.inf).min(dim=2)
    index = torch.arange(x.shape[1], device=x.device)
    return torch.where(centre, index, torch.where(valid & best.isfinite(), nearest, -1))


def peak_scores(x: Tensor, valid: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """(F, M) float32, log of density times distance of the ``valid`` (F, M) rows of ``x`` (F, M, D), -inf of others; and the
    squares of their distances (F, M, M), inf where either is not there. ``neighbours`` (F,) nearest rows make a density, itself
    included.
    """
    square = squared_distances(x)
    both = valid[:, :, None] & valid[:, None]
    far = square.masked_fill(~both, torch.inf)
    k = min(int(neighbours.max()), x.shape[1])
    near = far.topk(k, dim=2, largest=False).values.sqrt_().square_()  # of distances in float32
    counted = (torch.arange(k, device=x.device) < neighbours[:, None])[:, None] & near.isfinite()
    density = -(near.masked_fill(~counted, 0).sum(dim=2) / counted.sum(dim=2).clamp_min(1))
    density = density.masked_fill(~valid, -torch.inf)
    rising = -density
    delta = nearest_of_lower(far, torch.searchsorted(rising.sort(dim=1).values, rising))  # strictly denser rows
    most = square.masked_fill_(~both, 0).amax(dim=(1, 2))
    delta = torch.where(delta.isinf(), most[:, None], delta).sqrt_()
    return (density + delta.log()).masked_fill(~valid, -torch.inf), far


def cuts(similarity: Tensor, threshold: float, least: int) -> tuple[Tensor, Tensor]:
    """(T - 1,) bool each: cuts where ``similarity`` (T - 1,) is below ``threshold``, and those added to reach ``least`` segments.

    The lowest of all are added, cuts that stand already counting as 1: where too few others exist one of them is added again.
    """
    natural = similarity < threshold
    rank = torch.where(natural, 1.0, similarity).sort(stable=True).indices.argsort()
    return natural, rank < least - 1 - natural.sum()


def gathered(x: Tensor, picked: Tensor, root: Tensor, rows: Tensor, joined: Tensor) -> Compressed:
    """Picks and clusters of trees together; ``joined`` (T, N) place in the frame of the centre of each root, -1: dropped."""
    frames, n = picked.shape
    device = x.device
    base = (torch.arange(frames, device=device) * n)[:, None]
    centre = torch.where(joined < 0, -1, joined + base).flatten()
    total = torch.zeros_like(rows).index_add_(0, centre.clamp_min(0), rows * (centre >= 0)[:, None])
    members = torch.bincount(centre[centre >= 0], minlength=frames * n)
    single = picked.flatten().nonzero().flatten()
    made = (members > 0).nonzero().flatten()
    source, order = torch.cat([single, made]).sort(stable=True)
    features = torch.cat([x.flatten(0, 1)[single], total[made] / members[made, None]])[order]
    row_of = torch.full((frames * n,), -1, device=device)
    back = order.argsort()
    row_of[made] = back[len(single) :]
    assign = torch.where(centre[root.flatten()] < 0, -1, row_of[centre[root.flatten()].clamp_min(0)])
    assign[single] = back[: len(single)]
    return Compressed(assign, source, features, picked)
