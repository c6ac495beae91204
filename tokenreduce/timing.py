"""Measured time: one forward pass over a prompt, taking turns between arms, so that ratios are paired."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenreduce.stopwatch import now

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tokenreduce.cost import Report

REPEATS = 5  # timed rounds after one round of warm-up


@dataclass(frozen=True)
class Lap:
    """One timed forward pass over a prompt: seconds in all, of the vision tower and of the decoder; the report if wrapped."""

    total_s: float
    tower_s: float
    report: Report | None
    decoder_s: float = 0.0


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of paired ratios."""

    median: float
    low: float
    high: float


def time_prefill(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    arms: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    repeats: int = REPEATS,
    tower: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> dict[str, list[Lap]]:
    """Time one forward pass over ``inputs`` under each context of ``arms``, taking turns, after a round of warm-up.

    Returns ``repeats`` laps per arm; lap i of all arms was measured in the same round, so their ratios are paired.
    ``tower_s`` is 0 without a ``tower``, ``decoder_s`` without a ``decoder``; what a method does at the decoder's door is
    part of the decoder.
    """
    import torch

    from tokenreduce.wrapping import is_wrapped, report

    device = next(model.parameters()).device
    clock = {"tower": 0.0, "decoder": 0.0}

    def moment() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return now()

    def start(part: str, *_: Any) -> None:
        clock[part] -= moment()

    def stop(part: str, *_: Any) -> None:
        clock[part] += moment()

    handles = []
    for part, module in (("tower", tower), ("decoder", decoder)):
        if module is not None:
            handles.append(module.register_forward_pre_hook(partial(start, part), prepend=True))
            handles.append(module.register_forward_hook(partial(stop, part)))
    laps: dict[str, list[Lap]] = {name: [] for name in arms}
    try:
        with torch.inference_mode():
            for turn in range(repeats + 1):
                for name, context in arms.items():
                    with context():
                        clock.update(tower=0.0, decoder=0.0)
                        begin = moment()
                        model(**inputs, use_cache=True, logits_to_keep=1)
                        total = moment() - begin
                        cost = report(model) if is_wrapped(model) else None
                    if turn:
                        laps[name].append(Lap(total, clock["tower"], cost, clock["decoder"]))
    finally:
        for handle in handles:
            handle.remove()
    return laps


def speed_up(before: Sequence[float], after: Sequence[float]) -> Spread:
    """Spread of the paired ratios ``before[i] / after[i]``."""
    ratios = [b / max(a, 1e-9) for b, a in zip(before, after, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))
