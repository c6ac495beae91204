"""Tokens as ToMe is shown them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Keys
from tokenreduce.tokens import VisualTokens


def shown(
    x: Tensor, keys: Tensor, amount: Any, prefix: int, size: Tensor | None = None, layer: int = 0
) -> VisualTokens:
    return VisualTokens(
        features=x,
        layout=Layout(1, x.shape[1] - prefix),
        stage="encoder",
        layer=layer,
        size=size,
        signals={Keys(layer): keys},
        prefix=prefix,
        amount=amount,
    )


def sizes(plan: Reduction, size: Tensor) -> Tensor:
    return torch.zeros(plan.source.shape).scatter_add_(1, plan.assign, size)
