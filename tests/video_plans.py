"""Videos of random scenes, and what a method plans for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import STAGES, VisualTokens

FACTS = ModelFacts(family="plain", stages=STAGES, tower_depth=4, feature_block=2, has_cls=False, decoder_depth=8)


SIZES = [(8, 12), (7, 5), (4, 9), (3, 6), (2, 7), (1, 8), (21, 4)]


def footage(frames: int, n: int, channels: int = 16, seed: int = 0) -> Tensor:
    """(T, N, C): most places only shiver from frame to frame, and now and then all change."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, n, channels, generator=draw)
    for t in range(1, frames):
        still = torch.rand(n, 1, generator=draw) < (0.0 if t % 5 == 4 else 0.7)
        x[t] = torch.where(still, x[t - 1] + 0.1 * x[t], x[t])
    return x


def planned(method: Method, x: Tensor, stage: int = 0, seed: int = 0) -> tuple[VisualTokens, Reduction]:
    """What ``method`` answers to videos ``x`` (B, T, N, C); signals are random, of the shapes that it asks for."""
    draw = torch.Generator().manual_seed(seed)
    batch, frames, n, _ = x.shape
    step = method.plan(FACTS)[stage]
    tokens = VisualTokens(
        x.flatten(1, 2),
        Layout(1, n, frames=frames, medium="video"),
        step.stage,
        step.layer,
        amount=step.amount,
        signals={need: torch.rand(1, frames * n, generator=draw).expand(batch, -1) for need in step.needs},
    )
    return tokens, method.checked(tokens)


def kept(plan: Reduction, b: int = 0) -> list[int]:
    rows = plan.source[b] if plan.valid is None else plan.source[b][plan.valid[b]]
    return sorted(rows.tolist())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a[None].double(), b[None].double())[0])
