"""Max-min and DPP selection against loops that read a whole table of cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.greedy_selection import dpp_selection, max_min_selection

from .case import Case, share_of_others

C = 4096
SIZES = [
    {"B": 1, "N": 576, "K": 64},
    {"B": 1, "N": 2880, "K": 320},
    {"B": 1, "N": 2880, "K": 576},
    {"B": 16, "N": 576, "K": 64},
    {"B": 1, "N": 576, "K": 64, "DPP": 1},
    {"B": 5, "N": 576, "K": 64, "DPP": 1},
    {"B": 1, "N": 2880, "K": 320, "DPP": 1},
]
CPU_LIMIT = 2880 * 576


def max_min(x: Tensor, k: int) -> Tensor:
    """As printed: the minimum over all that was taken, anew in every step."""
    unit = F.normalize(x.float(), dim=-1)
    distance = 1 - unit @ unit.mT
    other = distance.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), torch.inf)
    taken = other.amin(dim=1).argmax()[None]
    for _ in range(k - 1):
        gain = distance[taken].amin(dim=0)
        gain[taken] = -torch.inf
        taken = torch.cat([taken, gain.argmax()[None]])
    return taken


def dpp(x: Tensor, relevance: Tensor, k: int) -> Tensor:
    """The incremental Cholesky factor on the whole matrix L."""
    unit = F.normalize(x.float(), dim=-1)
    table = relevance[:, None] * (unit @ unit.mT) * relevance
    gain, factor, taken = table.diagonal().clone(), table.new_zeros(k, len(x)), []
    for step in range(k):
        j = gain.argmax()
        taken.append(j)
        factor[step] = (table[j] - factor[:step, j] @ factor[:step]) / gain[j].sqrt()
        gain = gain - factor[step].square()
        gain[j] = -torch.inf
    return torch.stack(taken)


def pictures(batch: int, n: int, device: torch.device) -> Tensor:
    """(B, N, C) as tokens of a picture repeat: 300 directions with noise around a common mean."""
    centres = torch.randn(300, C, device=device)[torch.randint(300, (batch, n), device=device)]
    return centres + 0.5 * torch.randn(batch, n, C, device=device) + 2 * torch.randn(C, device=device)


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n, k = size["B"], size["N"], size["K"]
    x = pictures(batch, n, device).to(dtype)
    relevance = torch.rand(batch, n, device=device) * 0.5 + 0.5
    if "DPP" in size:
        arms = (
            lambda: dpp_selection(x, relevance, k),
            lambda: torch.stack([dpp(*one, k) for one in zip(x, relevance)]),
        )
    else:
        arms = (lambda: max_min_selection(x, k), lambda: torch.stack([max_min(one, k) for one in x]))
    return Case(
        *arms,
        flops=2 * batch * n * k * C,
        bytes=x.nbytes,
        difference=share_of_others,
        tolerance=0.02,
        note="DPP" if "DPP" in size else "max-min",
    )
