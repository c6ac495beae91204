"""One step of ToMe, matching and merging, against the table of cosines, a sort and a scatter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.matching import match

from .case import Case, largest_difference

C, D = 64, 1024  # channels of the keys' mean over heads, and of the tokens
SIZES = [
    {"B": 1, "N": 577},
    {"B": 16, "N": 577},
    {"B": 4, "N": 1025},
    {"B": 1, "N": 4096},
    {"B": 4, "N": 4096},
    {"B": 16, "N": 4096},
    {"B": 1, "N": 16384},
]
CPU_LIMIT = 16 * 4096


def plain(metric: Tensor, x: Tensor, size: Tensor, r: int) -> Tensor:
    """Section 3 of the paper step by step: rows (B, N - r, D), unmerged ones of A first."""
    unit = F.normalize(metric.float(), dim=-1)
    a, b = unit[:, ::2], unit[:, 1::2]
    score = a @ b.mT
    score[:, 0] = -torch.inf
    best, partner = score.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    alone, leaving = order[:, r:].sort(dim=1).values[..., None], order[:, :r, None]
    joined = partner[..., None].gather(1, leaving)

    def merged(y: Tensor) -> Tensor:
        first, second = y[:, ::2], y[:, 1::2]
        width = y.shape[-1]
        moving = first.gather(1, leaving.expand(-1, -1, width))
        second = second.scatter_reduce(1, joined.expand(-1, -1, width), moving, reduce="sum")
        return torch.cat([first.gather(1, alone.expand(-1, -1, width)), second], dim=1)

    weight = size[..., None]
    return (merged(x.float() * weight) / merged(weight)).to(x.dtype)


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n = size["B"], size["N"]
    r = n // 12
    metric, x = (torch.randn(batch, n, c, device=device).to(dtype) for c in (C, D))
    weight = torch.randint(1, 9, (batch, n), device=device).float()

    def ours() -> Any:
        return match(metric, r, prefix=1).merge(1, weight=weight).carry(x)

    moved = (metric.nbytes + x.nbytes * (1 + (n - r) / n)) + 4 * weight.numel()
    return Case(
        ours,
        lambda: plain(metric, x, weight, r),
        flops=batch * (n // 2) ** 2 * C * 2,
        bytes=moved,
        difference=lambda a, b: float((largest_difference(a, b) > 1e-2) and (a != b).any(-1).double().mean()),
        tolerance=0.01,
        note=f"match keys of {C} channels, merge {r} of {n} tokens of {D}",
    )
