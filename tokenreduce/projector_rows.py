"""What methods have in common that look at the rows that enter the projector, or merge them in front of it."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.model_facts import ModelFacts
from tokenreduce.projection import Projector
from tokenreduce.signals import ProjectorInput
from tokenreduce.tokens import VisualTokens


def in_front(facts: ModelFacts, asked: bool | None = None) -> bool:
    """Whether to work on what enters the projector; None: where one patch makes one token, and else on features."""
    return facts.patches_per_token == 1 if asked is None else asked


def rows_of(tokens: VisualTokens, before: bool) -> tuple[Tensor, Projector]:
    """Rows (B, N, C) of ``tokens``, ``before`` the projector or behind it, and what makes features of such rows."""
    if before:
        return tokens.signal(ProjectorInput()), tokens.projector
    return tokens.features, Projector.none()


def rows_substitute(facts: ModelFacts, asked: bool | None = None) -> tuple[str, ...]:
    """What to say where features stand in for rows that enter the projector."""
    if not in_front(facts, asked):
        return () if asked is not None else ("features behind the projector, which joins patches in tokens",)
    return (f"features behind the projector, for {facts.interpolated}",) if facts.interpolated else ()


def needs_cls(
    name: str,
    facts: ModelFacts,
    asked: str = "forward_cls=True",
    instead: str = "forward_cls=False, which spends the whole budget on patches",
) -> None:
    """Raise where there is no [CLS] row to hand on, which was ``asked`` for; ``instead``, what can be."""
    if not facts.has_cls:
        raise ValueError(
            f"method={name!r}: {asked}, but the vision tower of this {facts.family} model has no [CLS] token; allowed "
            f"here: {instead}"
        )
