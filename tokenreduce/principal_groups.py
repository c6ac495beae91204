"""Groups of tokens by principal component, and a share of the budget for each: mathematics of PruneSID."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.rows import unit_rows
from tokenreduce.uploading import uploaded

GROUP = 4  # tokens kept of a group on average


class Selected(NamedTuple):
    """Tokens (B, T) group by group; of every token, its group and its score; how many each group's suppression left."""

    order: Tensor
    group: Tensor
    score: Tensor
    left: Tensor


def loadings(x: Tensor, q: int) -> Tensor:
    """(B, N, q) loadings of the rows ``x`` (B, N, C) on their q leading principal components.

    Singular vectors of sigmoid(x), each row less its mean; from the eigenvectors of the table of products, of rows or of
    channels, whichever are fewer, in float64. A component beyond the rank of more rows than channels has loadings of 0.
    """
    rows = torch.sigmoid(x.detach().float()).double()
    rows = rows - rows.mean(dim=2, keepdim=True)
    if rows.shape[1] <= rows.shape[2]:
        return torch.linalg.eigh(rows @ rows.mT).eigenvectors[..., -q:].flip(-1)
    value, vector = torch.linalg.eigh(rows.mT @ rows)
    value, vector = value[:, None, -q:].flip(-1), vector[..., -q:].flip(-1)
    least = value[..., :1] * rows.shape[1] * torch.finfo(value.dtype).eps
    return (rows @ vector / value.clamp_min(torch.finfo(value.dtype).tiny).sqrt()).masked_fill(value <= least, 0)


def select(x: Tensor, k: int, score: Tensor | None = None, *, cls: int = 0, loading: Tensor | None = None) -> Selected:
    """``k`` tokens of ``x`` (B, N, C), of which ``cls`` is the [CLS] row, which is not among them.

    Args:
        score: (B, N), [CLS] attention; None: the variant without, which ranks by the loading.
        loading: (B, N, q), given instead of computed.
    """
    n, clip = x.shape[1], score is not None
    k = min(k, n + cls)
    if loading is None:
        loading = loadings(x, min(max(1, k // GROUP) if clip else max(k // GROUP, GROUP), n, x.shape[2]))
    size, group = loading.abs().max(dim=2)
    rank = size if score is None else score.float()
    similar = unit_rows(x) @ unit_rows(x).mT
    limit = threshold(similar, k, clip)
    taken = suppressed(similar, rank, group, limit)
    groups = loading.shape[2]
    members = F.one_hot(group, groups)
    left = (members * taken[..., None]).sum(dim=1)
    shares = [quotas(a, b, k, cls) for a, b in zip(left.tolist(), members.sum(dim=1).tolist())]
    # within a group those taken first, by falling score, then the others
    order = rank.sort(dim=1, descending=True, stable=True).indices
    for key in (~taken, group):
        order = order.gather(1, key.gather(1, order).sort(dim=1, stable=True).indices)
    sizes = members.sum(dim=1)
    own = group.gather(1, order)
    place = torch.arange(n, device=x.device) - (sizes.cumsum(dim=1) - sizes).gather(1, own)
    kept = place < uploaded(shares, x.device).gather(1, own)
    first = (~kept).to(torch.int8).sort(dim=1, stable=True).indices[:, : k - cls]
    return Selected(order.gather(1, first), group, rank, left)


def spread(x: Tensor) -> Tensor:
    """(B,) phi of the rows ``x`` (B, N, C): 1 less their mean cosine over pairs, in float64; 0 where all look the same."""
    unit = unit_rows(x).double()
    n = x.shape[1]
    pairs = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))
    return 1 - pairs / max(n * (n - 1), 1)


def shares_by_spread(phi: Tensor, k: int, n: int, mean: float) -> Tensor:
    """(B,) long: of ``n`` tokens ``k`` in proportion to ``phi`` (B,) over its ``mean``, within half and twice ``k``."""
    return (phi * (k / mean)).round().long().clamp(-(-k // 2), min(2 * k, n))


def threshold(similar: Tensor, k: int, clip: bool) -> Tensor:
    """(B,) similarity above which a token is set aside; may exceed 1, and then none is."""
    n = similar.shape[1]
    upper = torch.triu(similar, diagonal=int(clip)).double().sum(dim=(1, 2))
    if clip:
        return (k / 32) * upper / max(n * (n - 1) // 2, 1)
    return max(18 * k / n, 1) * upper / n**2


def suppressed(similar: Tensor, rank: Tensor, group: Tensor, limit: Tensor) -> Tensor:
    """(B, N) bool: tokens that are taken where in each group the highest ``rank`` (B, N) above 0 is taken, those more than
    ``limit`` similar to it are set aside, and so on."""
    n = rank.shape[1]
    order = rank.sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1)
    waits, taken = rank > 0, torch.zeros_like(rank, dtype=torch.bool)
    while bool(waits.any()):  # one token of every group in each round
        first = torch.full_like(place, n).scatter_reduce(1, group, place.masked_fill(~waits, n), "amin")
        best = first.gather(1, group)  # of every token, the place of the best one that waits in its group; n: none
        now = waits & (place == best)
        near = similar.gather(1, order.gather(1, best.clamp_max(n - 1))[:, None])[:, 0] > limit[:, None]
        taken |= now
        waits &= ~(now | near)
    return taken


def quotas(left: list[int], size: list[int], k: int, cls: int = 0) -> list[int]:
    """Tokens of each group, ``k`` in all less ``cls``, where suppression left ``left`` of its ``size``."""
    low = [min(1, n) for n in size]
    high = [min(5 * -(-k // 64), n, a) for n, a in zip(size, left)]
    while sum(high) < min(k, sum(size)):
        high = [min(h + 1, n) for h, n in zip(high, size)]
    rest = max(0, k - sum(low) - cls)
    part = torch.tensor(left).cumsum(0).float() * rest / max(sum(left), 1)
    upto = [0, *part.round().long().tolist()]
    got = [min(a + n - m, h) for a, m, n, h in zip(low, upto, upto[1:], high)]
    missing = rest + sum(low) - sum(got)
    for g in sorted(range(len(left)), key=lambda g: -left[g]):
        more = min(max(missing, 0), high[g] - got[g])
        got[g], missing = got[g] + more, missing - more
    return got
