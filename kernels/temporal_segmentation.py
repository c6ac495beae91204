"""Temporal segmentation: cut a video where keeping one copy of what stays still saves most tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.kernels.rows import row_blocks

MAX_WINDOW = 1024
TOGETHER = 16  # frames whose run lengths are counted together


class TemporalSegmenter:
    """The dynamic programme over frames, one frame at a time, on the host.

    A segment of frames s..e saves (e - s) * #{places still from s to e}. ``best`` after each frame is the most that any
    cut of the frames so far saves. A place that has been still for l steps is still in every window that reaches back
    at most l steps, so one histogram of these run lengths gives the counts for all s: O(N + W) per frame, and no table of
    frames by frames. Of equal savings the last frame alone wins, then the shortest window; a window without a still place
    is never chosen.

    Frames are counted from 0, segments are ``(first, last + 1)``.

    Attributes:
        frames: frames pushed. ``start``: first frame not yet handed out; ``frames - start`` are undecided.
        saved: tokens saved by the best cut of all frames pushed.

    Memory: N run lengths and two integers per undecided frame.

    Source: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025,
        arXiv 2505.21334 (global redundancy-aware temporal segmentation).
    """

    def __init__(self, max_window: int = MAX_WINDOW) -> None:
        """``max_window``: frames of the longest segment, at least 1."""
        if max_window < 1:
            raise ValueError(f"max_window={max_window}; allowed: an int >= 1, for example {MAX_WINDOW}")
        self.max_window = max_window
        self.frames = 0
        self.start = 0
        self._run: Tensor | None = None  # (N,) steps for which each place has been still
        self._best = [0]  # for the first start, start + 1, ... frames: tokens saved
        self._length: list[int] = []  # and of the segment that ends there

    @property
    def saved(self) -> int:
        return self._best[-1]

    @property
    def undecided(self) -> int:
        return self.frames - self.start

    def push(self, still: Tensor | None) -> None:
        """Add a frame. ``still`` (N,) bool: places like those of the frame before; None: nothing is (the first frame)."""
        if still is None or self.frames == 0:
            self._run = None
            self._add(torch.zeros(0, dtype=torch.long), 0)
        else:
            self.push_all(still[None])

    def push_all(self, still: Tensor) -> None:
        """Add frames behind a first one; ``still`` (A, N) bool, as above for each of them."""
        still = still.cpu()
        for block in row_blocks(len(still), 1, TOGETHER):
            own = still[block]
            step = torch.arange(1, len(own) + 1)[:, None]
            changed = torch.where(own, 0, step).cummax(dim=0).values  # at which step last, 0: at none of these
            run = step - changed
            if self._run is not None:
                run += self._run * (changed == 0)
            self._run = run[-1]
            run = run.clamp_max(self.max_window - 1)
            longest = run.amax(dim=1).tolist()
            runs = torch.zeros(len(own), max(longest) + 1, dtype=torch.long).scatter_add_(1, run, torch.ones_like(run))
            count = runs.flip(1).cumsum(dim=1).flip(1)[:, 1:]
            for saves, reach in zip(count * torch.arange(1, max(longest) + 1), longest):
                self._add(saves, reach)

    def _add(self, saves: Tensor, reach: int) -> None:
        """Add a frame; ``saves`` (>= reach,) tokens by windows of 2, 3, ... frames that end in it."""
        best, length, reach = self._best[-1], 1, min(reach, self.undecided)
        if reach:
            before = torch.tensor(self._best[-2 : -2 - reach : -1])
            gain, step = (before + saves[:reach]).max(dim=0)  # the first of equals: the shortest window
            if int(gain) > best:
                best, length = int(gain), int(step) + 2
        self._best.append(best)
        self._length.append(length)
        self.frames += 1

    def settled(self) -> list[tuple[int, int]]:
        """Hand out the segments that no later frame can change.

        A window that crosses the last frame pays only if some place has been still since its start; every cut before
        such a start on which all possible predecessors agree is final. In particular, nothing before the last frame can
        change when no place is still between it and the one before.
        """
        oldest = self.frames - 1 - min(self._longest, self.max_window - 2)
        ends = set(range(max(oldest, self.start), self.frames + 1))
        at = self.frames
        while len(ends) > 1:
            if at in ends:
                ends.remove(at)
                ends.add(at - self._length[at - 1 - self.start])
            at -= 1
        return self._hand_out(ends.pop())

    def finish(self) -> list[tuple[int, int]]:
        """Hand out the best cut of all frames so far; later windows start after them."""
        return self._hand_out(self.frames)

    @property
    def _longest(self) -> int:
        return 0 if self._run is None else int(self._run.max())

    def _hand_out(self, end: int) -> list[tuple[int, int]]:
        segments, stop = [], end
        while stop > self.start:
            first = stop - self._length[stop - 1 - self.start]
            segments.append((first, stop))
            stop = first
        del self._best[: end - self.start], self._length[: end - self.start]
        self.start = end
        return segments[::-1]


def temporal_segmentation(still: Tensor, max_window: int = MAX_WINDOW) -> tuple[list[tuple[int, int]], int]:
    """The cut of a whole video that saves most tokens.

    Args:
        still: (T - 1, N) bool, places that stay the same between adjacent frames.
        max_window: frames of the longest segment.

    Returns:
        Segments ``(first, last + 1)`` that cover all T frames in order, and the number of tokens saved. O(T * (N + W)).
    """
    segmenter = TemporalSegmenter(max_window)
    segmenter.push(None)
    segmenter.push_all(still)
    return segmenter.finish(), segmenter.saved
