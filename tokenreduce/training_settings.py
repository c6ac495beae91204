"""How a method is trained: steps, learning rate, loss, and how gradients pass a choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tokenreduce.validation import choice, in_range, whole

WARMUP = 0.05  # of the steps


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a method is trained; what a checkpoint has to agree with.

    Attributes:
        steps: of the optimizer, one call of the data each.
        learning_rate: the peak, after a twentieth of the steps, from where it falls as a cosine.
        loss: ``distillation``, the divergence from what the unreduced model says, or ``answers``, cross-entropy of ``labels``.
        relax: how gradients pass the choice, as ``relaxed_selection`` says.
        temperature: how soft it is, at the first step and at the last, falling geometrically.
        seed: of every draw.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    loss: Literal["distillation", "answers"] = "distillation"
    relax: Literal["straight_through", "noise"] = "straight_through"
    temperature: tuple[float, float] = (1.0, 0.1)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        whole("seed", self.seed, 0)
        in_range("learning_rate", self.learning_rate, 1e-9, 10.0)
        choice("loss", self.loss, ("distillation", "answers"))
        choice("relax", self.relax, ("straight_through", "noise"))
        if not (isinstance(self.temperature, tuple) and len(self.temperature) == 2):
            raise ValueError(
                f"temperature={self.temperature!r}; allowed: two numbers, at the first step and at the last"
            )
        for value in self.temperature:
            in_range("temperature", value, 1e-3, 1e3)

    def rate(self, step: int) -> float:
        """The learning rate at ``step`` (0-based)."""
        warmup = max(1, round(WARMUP * self.steps))
        rest = max(0, step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * rest))

    def soft(self, step: int) -> float:
        """The temperature at ``step`` (0-based)."""
        first, last = self.temperature
        return first * (last / first) ** (step / max(1, self.steps - 1))
