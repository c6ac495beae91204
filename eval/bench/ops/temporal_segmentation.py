"""Where to cut a video, against the recurrence over pairs of frames as it is printed."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels.temporal_segmentation import temporal_segmentation

from .case import Case

SIZES = [{"T": 64, "N": 196}, {"T": 256, "N": 196}, {"T": 1024, "N": 196}]
CPU_LIMIT = 1024 * 196


def plain(still: Tensor) -> tuple[list[tuple[int, int]], int]:
    """best(e) = max over s of best(s - 1) + (e - s) * #{places still from s to e}: a loop over all pairs of frames."""
    frames = len(still) + 1
    best, first = [0] * (frames + 1), list(range(frames))
    for end in range(frames):
        best[end + 1] = best[end]
        held = torch.ones(still.shape[1], dtype=torch.bool)
        for start in range(end - 1, -1, -1):
            held &= still[start]
            saved = best[start] + (end - start) * int(held.sum())
            if saved > best[end + 1]:
                best[end + 1], first[end] = saved, start
    segments, stop = [], frames
    while stop:
        segments.append((first[stop - 1], stop))
        stop = first[stop - 1]
    return segments[::-1], best[frames]


def case(size: dict[str, int], device: torch.device, dtype: torch.dtype) -> Case:
    still = torch.rand(size["T"] - 1, size["N"]) < 0.97
    return Case(
        lambda: temporal_segmentation(still)[1],
        lambda: plain(still)[1],
        flops=0,
        bytes=still.nbytes,
        difference=lambda a, b: abs(a - b),
        tolerance=0,
        note="on the host; O(T N) memory in both",
    )
