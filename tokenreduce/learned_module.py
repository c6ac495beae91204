"""The module of a method that learns, beside a model: no part of it, and always where its tensors are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn


class Learned:
    """A module beside a model, no part of it: what is asked for is where the model's tensors are, in their dtype.

    While ``module.training`` everything is one module in float32, and choices are made so that gradients can pass: in the way
    ``relax``, as soft as ``temperature``, at random by ``generator``; ``share``, which of how many processes draws.
    """

    relax: Literal["noise", "straight_through"] = "noise"
    temperature = 1.0
    generator: torch.Generator | None = None
    share = (0, 1)

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        self._placed: dict[str, tuple[torch.device, torch.dtype, nn.Module]] = {}

    @property
    def training(self) -> bool:
        return self.module.training

    def drawn(self, draw: Callable[..., Tensor], shape: torch.Size) -> Tensor:
        """``draw``, torch.rand or torch.randn, of ``shape`` (B, ...): this process's rows, as if those of all were one batch."""
        which, of = self.share
        rows = draw((of * shape[0], *shape[1:]), generator=self.generator)
        return rows[which * shape[0] : (which + 1) * shape[0]]

    def part(self, name: str, like: Tensor) -> nn.Module:
        """The submodule ``name``, all of it where that is empty, on the device of ``like`` and in its dtype."""
        own = self.module.get_submodule(name)
        if self.training:
            return own.to(like.device)
        device, dtype, placed = self._placed.get(name, (None, None, own))
        if (device, dtype) != (like.device, like.dtype):
            placed = copy.deepcopy(own).to(like.device, like.dtype)
            self._placed[name] = like.device, like.dtype, placed
        return placed
