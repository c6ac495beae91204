"""Trace and report of the last prompt: of the thread that asks, or, where it ran none, of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tokenreduce.cost import Report
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.traces import Trace


@dataclass
class Done:
    """Trace and report of one prompt; a trace that is told how to be made is made when somebody asks for it."""

    told: Trace | Callable[[], Trace]
    report: Report

    @cached_property
    def trace(self) -> Trace:
        return self.told if isinstance(self.told, Trace) else self.told()


class LastDone:
    """What is known of the last prompt."""

    own = PerThread[Done | None](nothing)

    def __init__(self) -> None:
        self.latest: Done | None = None

    def note(self, trace: Trace | Callable[[], Trace], report: Report) -> None:
        self.own = self.latest = Done(trace, report)

    @property
    def trace(self) -> Trace | None:
        found = self.own or self.latest
        return None if found is None else found.trace

    @property
    def report(self) -> Report | None:
        found = self.own or self.latest
        return None if found is None else found.report
