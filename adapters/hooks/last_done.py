"""Trace and report of the last prompt: of the thread that asks, or, where it ran none, of the model."""

from __future__ import annotations

from tokenreduce.cost import Report
from tokenreduce.per_thread import PerThread, nothing
from tokenreduce.traces import Trace


class LastDone:
    """What is known of the last prompt."""

    own = PerThread[tuple[Trace, Report] | None](nothing)

    def __init__(self) -> None:
        self.latest: tuple[Trace, Report] | None = None

    def note(self, trace: Trace, report: Report) -> None:
        self.own = self.latest = (trace, report)

    @property
    def trace(self) -> Trace | None:
        found = self.own or self.latest
        return found and found[0]

    @property
    def report(self) -> Report | None:
        found = self.own or self.latest
        return found and found[1]
