"""Videos as HoliTom is shown them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived
from tokenreduce.tokens import VisualTokens

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 means of at most a few hundred values


def footage(frames: int, n: int, channels: int = 6, change: float = 0.4, seed: int = 0, batch: int = 1) -> Tensor:
    """(B, T, N, D): at every step each place changes with probability ``change``, else it moves by very little."""
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(batch, n, channels, generator=generator)]
    for _ in range(frames - 1):
        fresh = torch.randn(batch, n, channels, generator=generator)
        new = torch.rand(batch, n, 1, generator=generator) < change
        x.append(torch.where(new, fresh, x[-1] + 0.02 * fresh))
    return torch.stack(x, dim=1)


def shown(x: Tensor, score: Tensor, width: int | None = None, layout: Layout | None = None) -> VisualTokens:
    frames, n = x.shape[1:3]
    return VisualTokens(
        features=x.flatten(1, 2),
        layout=layout or Layout(n // (width or n), width or n, frames=frames),
        signals={AttentionReceived(22): score.flatten(1)},
    )


def planned(method: HoliTom, x: Tensor, score: Tensor) -> tuple[VisualTokens, Reduction]:
    tokens = shown(x, score)
    return tokens, method.reduce(tokens).check(tokens)


def scores(x: Tensor, seed: int = 0) -> Tensor:
    return torch.rand(x.shape[:3], generator=torch.Generator().manual_seed(seed))
