"""Facts and steps of MustDrop."""

from __future__ import annotations

from typing import Any

from standins import FACTS

from tokenreduce.method import Step
from tokenreduce.methods.mustdrop import MustDrop
from tokenreduce.model_facts import ModelFacts


def facts(**more: Any) -> ModelFacts:
    return ModelFacts(**(vars(FACTS) | more))


def step_of(method: MustDrop, stage: str, layer: int | None = None) -> Step:
    return next(s for s in method.plan(FACTS) if s.stage == stage and layer in (None, s.layer))


def described(alike: list[float], r: int, height: int, width: int, w: int) -> list[list[int]]:
    """Tokens of each row after the leading one, by Python lists: merged windows, then single patches."""
    across = width // w
    cells = [
        [(v // across * w + i) * width + v % across * w + j for i in range(w) for j in range(w)]
        for v in range(len(alike))
    ]
    chosen = sorted(range(len(alike)), key=lambda v: (-alike[v], v))[:r]
    gone = {c for v in chosen for c in cells[v]}
    return [cells[v] for v in chosen] + [[c] for c in range(height * width) if c not in gone]
