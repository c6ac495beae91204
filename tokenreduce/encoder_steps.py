"""What is done in which block of an encoder, once it is known how many patches arrive."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.step_checks import check_step


class EncoderStep(NamedTuple):
    """A step of a method in a block; ``number``, of the method among those of the pipeline."""

    method: Method
    step: Step
    number: int


def encoder_steps(
    methods: Sequence[Method], facts: ModelFacts, grid: tuple[int, int], shares: tuple[int | None, ...] = ()
) -> dict[int, list[EncoderStep]]:
    """By block, what to do with ``grid`` patches as their rows arrive in the encoder.

    ``shares``: per method, how many are left of them, where they are a view of an image; None: as the budget says.

    Errors: ``ValueError`` when a budget cannot be reached from so many patches.
    """
    facts = dataclasses.replace(facts, tower_grid=grid)
    by_block: dict[int, list[EncoderStep]] = {}
    for number, (method, share) in enumerate(zip(methods, shares or (None,) * len(methods), strict=True)):
        if share is not None:
            method = dataclasses.replace(method, keep=share)
        steps = [] if method.is_identity(grid[0] * grid[1]) else method.plan(facts)
        for step in steps:
            check_step(method.name, step, facts)
            if step.stage == "encoder" and step.layer is not None:
                by_block.setdefault(step.layer, []).append(EncoderStep(method, step, number))
    return by_block
