"""One operation at one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Of two tensors of numbers, the largest absolute difference; 0 for equal infinities."""
    return float(torch.where(a == b, 0.0, (a.double() - b.double()).abs()).max())


def share_of_others(a: Tensor, b: Tensor) -> float:
    """Of two tensors of indices, the share that differs: rounding decides between near ties."""
    return float((a != b).double().mean())


@dataclass(frozen=True)
class Case:
    """Attributes:
    ours, plain: the two forms, without arguments.
    flops: the fewest that the mathematics needs; ``bytes``: inputs read once, outputs written once.
    difference: how far two results are apart; at most ``tolerance``.
    note: what the two arms do, where the name does not say it.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    flops: float
    bytes: float
    difference: Callable[[Any, Any], float] = largest_difference
    tolerance: float = 1e-4
    note: str = ""
