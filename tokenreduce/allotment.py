"""A budget shared among parts of an image by weight, where a part cannot take more than it holds."""

from __future__ import annotations

import torch
from torch import Tensor


def allot(weight: Tensor, k: int, capacity: Tensor | None = None) -> Tensor:
    """(B, P) long: how many of ``k`` tokens each of P parts gets; with ``capacity``, k in all.

    ``floor(k w_p / (sum w + 1e-6))`` each; what is missing goes one by one to the parts of largest weight (ties: the first).
    Where that gives a part more than it can hold, the surplus is shared among the others in the same proportions.

    Args:
        weight: (B, P) float, at least 0.
        capacity: (P,) long, tokens that each part holds, k or more in all; None: any number.

    Source: the rule of Zou et al., "HoloV", NeurIPS 2025, arXiv 2510.02912; the surplus is lost in its release.
    """
    weight = weight.float()
    count = _shares(weight / (weight.sum(dim=1, keepdim=True) + 1e-6), weight, k)
    if capacity is None:
        return count
    fits = (count <= capacity).all(dim=1) & (count.sum(dim=1) == k)
    return torch.where(fits[:, None], count, _filled(weight, k, capacity))


def _shares(share: Tensor, weight: Tensor, k: int) -> Tensor:
    count = (share * k).floor().long()
    return count + (_rank(weight) < k - count.sum(dim=1, keepdim=True))


def _rank(weight: Tensor) -> Tensor:
    """(B, P) place of each part when sorted by falling weight."""
    return weight.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)


def _filled(weight: Tensor, k: int, capacity: Tensor) -> Tensor:
    """Shares in proportion to ``weight``, each at most ``capacity``: those that overflow first are full, the rest share.

    The level at which part p is full is capacity / weight; parts are filled in that order until the rest have room.
    """
    room = capacity.expand_as(weight).float()
    level, order = (room / weight.clamp_min(1e-30)).sort(dim=1, stable=True)
    held, waiting = room.gather(1, order), weight.clamp_min(1e-30).gather(1, order).double()
    before = (held.cumsum(dim=1) - held).double()  # taken by parts that are full already, if this one is not
    behind = waiting.flip(1).cumsum(dim=1).flip(1)
    height = (k - before) / behind  # tokens per weight that is left for this part and those behind it
    full_sorted = (level.double() <= height).cummin(dim=1).values
    full = torch.zeros_like(full_sorted).scatter_(1, order, full_sorted)
    taken = (room * full).sum(dim=1, keepdim=True)
    open_weight = weight.double().clamp_min(1e-30).masked_fill(full, 0)
    share = (k - taken) * open_weight / open_weight.sum(dim=1, keepdim=True).clamp_min(1e-30)
    count = torch.minimum(torch.where(full, room, share.floor().float()), room).long()
    missing = k - count.sum(dim=1, keepdim=True)
    wanting = weight.masked_fill(count >= room, -1.0)
    return count + ((_rank(wanting) < missing) & (count < room))
