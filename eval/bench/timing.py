"""Time and memory: arms taking turns, and what the device can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce.timing import now

SHORTEST = 0.02  # seconds that one measurement lasts at least; shorter calls are repeated within it


@dataclass(frozen=True)
class Limits:
    """What the device did at most, measured here: bytes per second of a copy (read and written), FLOP/s of a product."""

    bandwidth: float
    flops: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for ``flops`` and ``moved`` bytes, each overlapping the other (Williams et al., 2009)."""
        return max(flops / self.flops, moved / self.bandwidth)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes; on a CPU it stands for peak memory."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and not func.is_view:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return out


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    start = moment(device)
    call()
    return moment(device) - start


def moment(device: torch.device) -> float:
    """Seconds from some point on, once the device has done its work."""
    _wait(device)
    return now()


def take_turns(arms: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per call of every arm, ``rounds`` of each after a warm-up; measurement i of all arms is of the same round."""

    def clock(arm: Callable[[], Any], times: int) -> float:
        return seconds(lambda: [arm() for _ in range(times)], device) / times

    with torch.inference_mode():
        for arm in arms.values():
            arm()
        times = {name: max(1, round(SHORTEST / max(clock(arm, 1), 1e-6))) for name, arm in arms.items()}
        laps: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                laps[name].append(clock(arm, times[name]))
    return laps


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """On CUDA the most memory that ``call`` holds beyond what was held before; elsewhere its largest single tensor."""
    with torch.inference_mode():
        if device.type == "cuda":
            _wait(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call()
            _wait(device)
            return torch.cuda.max_memory_allocated(device) - before
        with LargestTensor() as largest:
            call()
        return largest.bytes


def limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure the device: a copy of 256 MiB, a product of square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    source = torch.ones(64 * 2**20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=device).to(dtype)
    laps = take_turns({"copy": lambda: target.copy_(source), "product": lambda: a @ a}, 5, device)
    return Limits(2 * source.nbytes / min(laps["copy"]), 2 * side**3 / min(laps["product"]))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
