"""Random tokens with the signals a method asks for, and what it selects of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.registry import registry
from tokenreduce.signals import (
    AttentionReceived,
    ClsAttention,
    ImageFingerprint,
    Keys,
    LastQueryAttention,
    ProjectorInput,
    Signal,
    TextAttention,
)
from tokenreduce.tokens import STAGES, VisualTokens

FACTS = ModelFacts(
    family="stand-in", stages=STAGES, tower_depth=24, feature_block=22, has_cls=True, tower_prefix=1, decoder_depth=32
)


CHANNELS = 3


def value_of(signal: Signal, batch: int, n: int, generator: torch.Generator) -> Tensor:
    """A random value of the shape and kind that ``signal`` promises."""
    if isinstance(signal, ImageFingerprint):
        return torch.randint(-(1 << 62), 1 << 62, (batch,), generator=generator)
    if isinstance(signal, (ClsAttention, AttentionReceived, LastQueryAttention, TextAttention)):
        return torch.randn(batch, n, generator=generator).softmax(dim=1)
    if isinstance(signal, Keys):
        return torch.randn(batch, n, 4, generator=generator)
    raise NotImplementedError(f"say in value_of() what a {type(signal).__name__} looks like")


def near_square(n: int) -> Layout:
    height = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    return Layout(height, n // height)


def shown(step: Step, n: int, batch: int = 2, seed: int = 0, layout: Layout | None = None) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, n, CHANNELS, generator=generator)
    return VisualTokens(
        features=features,
        layout=layout or near_square(n),
        stage=step.stage,
        layer=step.layer,
        amount=step.amount,
        signals={  # a projector that changes nothing
            signal: features if isinstance(signal, ProjectorInput) else value_of(signal, batch, n, generator)
            for signal in step.needs
        },
    )


def scored(cls: type[Method], scores: Iterable[Tensor], layout: Layout | None = None, **parameters: Any) -> Reduction:
    """``cls`` shown the scores (B, N) in the order in which it asks for them."""
    method = cls(**parameters)
    (step,) = method.plan(FACTS)
    values = list(scores)
    n = values[0].shape[1]
    tokens = shown(step, n, len(values[0]), layout=layout)
    tokens.signals = dict(zip(step.needs, values))
    return method.reduce(tokens).check(tokens)


def counts(plan: Reduction) -> list[int]:
    return [plan.num_kept] * len(plan.source) if plan.valid is None else plan.valid.sum(dim=1).tolist()


def best(score: list[float], k: int, among: Iterable[int] | None = None) -> list[int]:
    """Indices of the k highest, ties to the lowest index, by sorting Python pairs."""
    pool = range(len(score)) if among is None else among
    return sorted(pool, key=lambda j: (-score[j], j))[:k]


def joins_frames(cls: type[Method]) -> bool:
    """Whether a method goes on with several frames as one sequence, which only encoders by themselves offer."""
    return cls.stages == ("encoder",) and any(step.joins > 1 for step in cls().plan(FACTS))


def in_language_models() -> list[str]:
    return [name for name, cls in registry().items() if not joins_frames(cls)]
