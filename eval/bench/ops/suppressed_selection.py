"""ID-Selection's suppression of look-alikes against a loop that reads a whole table of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.kernels.suppressed_selection import suppressed_selection

from .case import Case, share_of_others
from .greedy_selection import pictures

C, GAMMA = 4096, 20.0
SIZES = [
    {"B": 1, "N": 576, "K": 16},
    {"B": 1, "N": 576, "K": 64},
    {"B": 1, "N": 2880, "K": 320},
]
CPU_LIMIT = 2880 * 576


def plain(x: Tensor, score: Tensor, k: int) -> Tensor:
    """As printed, for one image (N, C)."""
    unit = F.normalize(x.float(), dim=-1)
    likeness = torch.exp(-GAMMA * (1 - unit @ unit.mT).clamp_min(0).square())
    left = score.clone()
    taken: list[int] = []
    for _ in range(k):
        alive = left.clone()
        alive[taken] = -torch.inf
        taken.append(int(alive.argmax()))
        left = (left - likeness[taken[-1]] * left[taken[-1]]).clamp_min(0)
    return torch.tensor(taken, device=x.device)


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    batch, n, k = size["B"], size["N"], size["K"]
    x = pictures(batch, n, device).to(dtype)
    score = torch.rand(batch, n, device=device)
    return Case(
        lambda: suppressed_selection(x, score, k, gamma=GAMMA, least=0.0)[0],
        lambda: torch.stack([plain(*one, k) for one in zip(x, score)]),
        flops=2 * batch * n * k * C,
        bytes=x.nbytes,
        difference=share_of_others,
        tolerance=0.02,
    )
