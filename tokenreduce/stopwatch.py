"""What a method itself costs: time between two points, without waiting for the device."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch


def now() -> float:
    """Seconds from some point on. On a single thread, those that this process ran: what else the machine does is left out."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Stopwatch:
    """Adds up the time of its ``with`` blocks; on CUDA by events, which are only read when ``milliseconds`` is."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, device: torch.device) -> AbstractContextManager[None]:
        if torch.compiler.is_compiling():
            return nullcontext()
        return _CudaLap(self) if device.type == "cuda" else _Lap(self)

    @property
    def milliseconds(self) -> float:
        """Total so far in milliseconds; waits for the device when there are CUDA events."""
        for start, stop in self._events:
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1e3
        self._events = []
        return self._seconds * 1e3

    def lap(self) -> Stopwatch:
        """A stopwatch that holds the time so far; this one starts again at zero."""
        done = Stopwatch()
        done._seconds, done._events = self._seconds, self._events
        self.reset()
        return done

    def add(self, other: Stopwatch) -> None:
        """Take over the time of ``other``; CUDA events that have passed become seconds, so that few are kept."""
        self._seconds += other._seconds
        self._events += other._events
        while self._events and self._events[0][1].query():
            start, stop = self._events.pop(0)
            self._seconds += start.elapsed_time(stop) / 1e3

    def __deepcopy__(self, memo: dict[int, object]) -> Stopwatch:
        return Stopwatch()


class _Lap(AbstractContextManager[None]):
    def __init__(self, of: Stopwatch) -> None:
        self.of = of

    def __enter__(self) -> None:
        self.start = now()

    def __exit__(self, *error: object) -> None:
        self.of._seconds += now() - self.start


class _CudaLap(AbstractContextManager[None]):
    def __init__(self, of: Stopwatch) -> None:
        self.of = of

    def __enter__(self) -> None:
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.start.record()

    def __exit__(self, *error: object) -> None:
        self.stop.record()
        self.of._events.append((self.start, self.stop))
