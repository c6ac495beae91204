"""Facts of models that need not exist, for methods that only plan."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tokenreduce.model_facts import ModelFacts
from tokenreduce.tokens import STAGES

#: a CLIP-L/14-336 tower under a 7B language model
FACTS = ModelFacts(
    family="stand-in",
    stages=STAGES,
    tower_depth=24,
    feature_block=22,
    has_cls=True,
    tower_prefix=1,
    tower_grid=(24, 24),
    decoder_depth=32,
    tokens_per_image=576,
)


def alone(n: int, depth: int = 4, prefix: int = 1) -> ModelFacts:
    """An encoder of ``n`` patches whose last block is used."""
    return dataclasses.replace(
        FACTS, tower_depth=depth, feature_block=depth - 1, tower_prefix=prefix, tower_grid=(1, n), decoder_depth=0
    )


def random(*size: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on ``seed`` alone."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
