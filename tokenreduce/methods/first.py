"""Baseline: the first visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.place_controls import ByPlace
from tokenreduce.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class First(ByPlace):
    """Keep the first K tokens in raster order: the top of the picture, or of each tile, or of each frame.

    A control: what a method gains over it is not a matter of where tokens lie.
    """

    name = "first"
    title = "the first tokens"

    def place(self, tokens: VisualTokens) -> Tensor:
        index = torch.arange(tokens.num_tokens, dtype=torch.float32, device=tokens.features.device)
        return -index.expand(tokens.source.shape)
