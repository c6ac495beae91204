"""What controls have in common: those that may act before the tower, and those that choose by place alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Signal
from tokenreduce.tokens import Stage, VisualTokens
from tokenreduce.validation import choice


@dataclass(frozen=True, kw_only=True)
class Control(Method, register=False):
    """A baseline that looks at no features.

    Attributes:
        at: ``projector``; or ``pixels``: what it does not keep never enters the vision tower. None: the projector, or, in a
            vision tower by itself, the pixels.
    """

    stages = ("pixels", "projector")
    needs: ClassVar[tuple[Signal, ...]] = ()

    at: Literal["pixels", "projector"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("at", self.at, (None, *self.stages))

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        own: Stage = "projector" if "projector" in facts.stages or "pixels" not in facts.stages else "pixels"
        return (Step(self.at or own, needs=self.needs),)


class ByPlace(Method, register=False):
    """Keep the K tokens whose place in the picture, or in each tile or frame, has the highest score; of equal ones the first."""

    stages = ("projector",)
    looks_at = "nothing"
    sees = "frame"

    def place(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float."""
        raise NotImplementedError

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return Reduction.top(self.place(tokens), self.budget.count(tokens.num_tokens), positions=self.positions)
