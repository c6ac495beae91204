"""Measured time: one forward pass over a prompt, taking turns between arms, so that ratios are paired."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.stopwatch import now

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tokenreduce.cost import Report

REPEATS = 5  # timed rounds after one round of warm-up


@dataclass(frozen=True)
class Lap:
    """One timed forward pass over a prompt: seconds in all and by stage, where asked for; the report if wrapped."""

    total_s: float
    seconds: Mapping[str, float]
    report: Report | None


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
    by_stage: bool = False,
    instead: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> dict[str, list[Lap]]:
    """Time one forward pass over ``inputs`` under each context of ``arms``, taking turns, after a round of warm-up.

    Returns ``repeats`` laps per arm; lap i of all arms was measured in the same round, so their ratios are paired.
    ``by_stage`` measures ``tower``, ``projector`` and ``prefill``, too, which on a GPU waits for the device in between; what
    a method does on the way into the decoder is part of the prefill. ``instead``: other inputs of single arms.
    """
    import torch

    from tokenreduce.attachment import is_wrapped, report

    stages = _Stages(model) if by_stage else None
    laps: dict[str, list[Lap]] = {name: [] for name in arms}
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for turn in range(repeats + 1):
                for name, context in arms.items():
                    with context():
                        if stages is not None:
                            stages.seconds.clear()
                        begin = moment(device)
                        model(**(instead or {}).get(name, inputs), use_cache=True, logits_to_keep=1)
                        total = moment(device) - begin
                        seconds = {} if stages is None else dict(stages.seconds)
                        cost = dataclasses.replace(report(model), seconds=seconds) if is_wrapped(model) else None
                    if turn:
                        laps[name].append(Lap(total, seconds, cost))
    finally:
        if stages is not None:
            stages.remove()
    return laps


def with_seconds(
    report: Report, laps: Sequence[Lap], unreduced: Sequence[Lap], step: tuple[float, float] | None = None
) -> Report:
    """``report`` with the median seconds of each stage, of ``laps`` and of the ``unreduced`` model's.

    ``step``: seconds of a decode step, reduced and unreduced, where they were measured.
    """

    def medians(of: Sequence[Lap]) -> dict[str, float]:
        return {stage: statistics.median(lap.seconds[stage] for lap in of) for stage in of[0].seconds}

    seconds, whole = medians(laps), medians(unreduced)
    if step is not None:
        seconds["decode step"], whole["decode step"] = step
    return dataclasses.replace(report, seconds=seconds, seconds_unreduced=whole)


def moment(device: torch.device) -> float:
    """Seconds from some point on, once ``device`` has done what it was told."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return now()


def processor_name() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class _Stages:
    """Seconds that a model spends in each stage; a projector inside a tower is no part of the tower."""

    def __init__(self, model: Any) -> None:
        from tokenreduce.adapters.registry import family_of

        family = family_of(model)
        self.device = next(model.parameters()).device
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.since = 0.0
        self.handles: list[Any] = []
        modules = {"tower": family.towers, "projector": family.projectors, "prefill": [family.decoder]}
        for stage, members in modules.items():
            for module in members:
                self.handles.append(module.register_forward_pre_hook(partial(self._start, stage), prepend=True))
                self.handles.append(module.register_forward_hook(self._stop, always_call=True))

    def _count(self, at: float) -> None:
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + at - self.since
        self.since = at

    def _start(self, stage: str, *_: Any) -> None:
        self._count(moment(self.device))
        self.running.append(stage)

    def _stop(self, *_: Any) -> None:
        self._count(moment(self.device))
        self.running.pop()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def speed_up(before: Sequence[float], after: Sequence[float]) -> Spread:
    """Spread of the paired ratios ``before[i] / after[i]``."""
    ratios = [b / max(a, 1e-9) for b, a in zip(before, after, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))
