"""Tokens as PiToMe is shown them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def shown(x: Tensor, amount: Any, prefix: int, keys: Tensor | None = None, size: Tensor | None = None) -> VisualTokens:
    return VisualTokens(
        features=x,
        layout=Layout(1, x.shape[1] - prefix),
        stage="encoder",
        layer=0,
        size=size,
        signals={} if keys is None else {Keys(0): keys},
        prefix=prefix,
        amount=amount,
    )


def sizes(plan: Reduction, size: Tensor) -> Tensor:
    return torch.zeros(plan.source.shape).scatter_add_(1, plan.assign.clamp_min(0), size * (plan.assign >= 0))
