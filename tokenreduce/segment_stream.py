"""A video that arrives frame by frame, reduced segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.temporal_segmentation import TemporalSegmenter
from tokenreduce.kernels.temporal_similarity import temporal_similarity

#: features (T, N, D), scores (T, N) and what stands still (T - 1, N) -> row (T * N,), source (K,) and weight (T * N,)
ReduceSegment = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Segment:
    """The tokens of one finished segment of a stream, in the order of the method.

    Attributes:
        start, stop: frames ``start`` to ``stop`` - 1, counted from the beginning of the stream.
        features: (K, D). ``frame``, ``cell``: (K,) long, where each token sits; ``size``: (K,), tokens it stands for.
    """

    start: int
    stop: int
    features: Tensor
    frame: Tensor
    cell: Tensor
    size: Tensor


class SegmentStream:
    """The segments of a video as its frames arrive, each reduced by ``reduce`` as soon as no later frame can change it.

    The segments are exactly those of the whole video. When ``limit`` frames are undecided, the best cut so far is made
    final: memory is at most ``limit`` frames of N * D features and N scores, N run lengths and 2 * ``limit`` integers,
    however long the video.

    Args:
        reduce: plan of one segment.
        tau: cosine above which a place stands still between two frames.
        max_window: frames of the longest segment.
        limit: frames held, at least 1.

    Example:
        >>> import torch
        >>> from tokenreduce.methods.holitom import HoliTom
        >>> stream = HoliTom(keep=0.25).stream(limit=32)
        >>> frames = torch.randn(1, 6, 16).expand(5, -1, -1)
        >>> segments = [s for frame in frames for s in stream.push(frame, torch.rand(6))] + stream.flush()
        >>> [(s.start, s.stop, tuple(s.features.shape)) for s in segments]
        [(0, 5, (6, 16))]
    """

    def __init__(self, reduce: ReduceSegment, tau: float, max_window: int, limit: int = 64) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit} frames; allowed: an int >= 1, such as limit=64")
        self.reduce, self.tau, self.max_window, self.limit = reduce, tau, max_window, limit
        self._segmenter = TemporalSegmenter(max_window)
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []  # features, scores, places still since the frame before

    def push(self, frame: Tensor, score: Tensor) -> list[Segment]:
        """Add ``frame`` (N, D) with its attention ``score`` (N,); returns the segments that are finished now."""
        still = torch.zeros(len(frame), dtype=torch.bool, device=frame.device)
        if self._held:
            before = self._held[-1][0]
            if before.shape != frame.shape:
                raise ValueError(
                    f"frame of shape {tuple(frame.shape)} after frames of shape {tuple(before.shape)}; allowed: equal "
                    "shapes. Start a new stream for another video."
                )
            still = temporal_similarity(torch.stack([before, frame]))[0] > self.tau
        self._segmenter.push(still)
        self._held.append((frame, score, still))
        finished = self._hand_out(self._segmenter.settled())
        if self._segmenter.undecided >= self.limit:
            finished += self._hand_out(self._segmenter.finish())
        return finished

    def flush(self) -> list[Segment]:
        """The end of the video: the remaining segments. The next frame pushed begins another video."""
        segments = self._hand_out(self._segmenter.finish())
        self._segmenter = TemporalSegmenter(self.max_window)
        return segments

    def _hand_out(self, spans: list[tuple[int, int]]) -> list[Segment]:
        return [self._segment(start, stop) for start, stop in spans]

    def _segment(self, start: int, stop: int) -> Segment:
        """The tokens of the oldest ``stop - start`` frames held, which leave."""
        frames = self._held[: stop - start]
        del self._held[: stop - start]
        x, score, still = (torch.stack(part) for part in zip(*frames))
        n = x.shape[1]
        assign, source, weight = self.reduce(x, score, still[1:])
        size = torch.bincount(assign[assign >= 0], minlength=len(source))
        features = group_mean(x.flatten(0, 1)[None], assign[None], len(source), weight[None])[0]
        return Segment(start, stop, features, start + source // n, source % n, size)
