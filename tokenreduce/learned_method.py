"""A method with weights: a frozen dataclass like the others, and a small module built from what is known of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.distillation import distilled
from tokenreduce.learned_module import Learned
from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.training_step import TrainingStep
from tokenreduce.weights import Base, Header, Weights


@dataclass(frozen=True, kw_only=True)
class LearnedMethod(Method):
    """Base of methods that learn: a subclass also says in ``module`` what its weights are of.

    ``reduce`` finds the module in ``tokens.learned``: ``tokens.learned.part("", tokens.features)``, on the device and in the
    dtype of the model's tensors. It is no part of the model: not of its state dict or its parameters, and gone with ``unwrap``.

    Attributes:
        weights: a file that ``tr.Weights.save`` wrote, or what was read from one. None: the module as it is made, from seed 0.
        version: of how the method reads its weights; files of another one are refused.
        shaped_by: the parameters that ``module`` is built by, and what None stands for in new weights; given ones say it.
        trains: whether ``lesson`` has a gradient; by default, whether ``reduce`` answers with what gradients can pass while
            ``tokens.learned.training``.
    """

    version: ClassVar[int] = 1
    shaped_by: ClassVar[Mapping[str, Any]] = {}
    trains: ClassVar[bool] = True

    weights: Weights | str | PathLike[str] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None:
            return
        weights = Weights.of(self.weights)
        object.__setattr__(self, "weights", weights)
        for name in self.shaped_by:
            if getattr(self, name) is None:
                object.__setattr__(self, name, weights.header.shape.get(name))

    def module(self, facts: ModelFacts) -> nn.Module:
        """A new module for a model of ``facts``, its weights as training begins."""
        raise NotImplementedError

    def untrained(self, facts: ModelFacts) -> nn.Module:
        """``module``, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.module(facts)

    def learned(self, facts: ModelFacts) -> Learned | None:
        """The module beside a model of ``facts``; None: a method that does without.

        Errors: ``ValueError`` where the weights are of another method, version or shape, or belong to another model.
        """
        if self.weights is None:
            return Learned(self.untrained(facts))
        weights = Weights.of(self.weights)
        weights.check(self.name, self.version, self.shape, facts)
        return weights.beside(facts, lambda: self.module(facts))

    def lesson(self, step: TrainingStep) -> Tensor:
        """The losses of a step of training, (n,), one for each thing that it teaches, or () for all of them, with a gradient for
        the module ``step.learned``; their mean counts. Unless a method says otherwise, how far what the reduced model says
        is from what it says with all tokens, or from answers."""
        return distilled(step, self.keep)

    def header(self, facts: ModelFacts, training: Mapping[str, Any]) -> Header:
        """What a file of weights trained beside a model of ``facts`` says of them."""
        return Header(self.name, self.version, Base.of(facts), self.shape, training)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return () if self.weights is not None else ("weights that nobody trained, from seed 0",)

    @property
    def shape(self) -> dict[str, Any]:
        """The parameters that ``module`` is built by."""
        own = {name: getattr(self, name) for name in self.shaped_by}
        return {name: self.shaped_by[name] if value is None else value for name, value in own.items()}
