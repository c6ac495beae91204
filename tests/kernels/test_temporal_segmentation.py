"""temporal_segmentation against the recursion on a table of all windows, and frame by frame against the whole video."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.kernels.temporal_segmentation import TemporalSegmenter, temporal_segmentation


def described(still: Tensor, max_window: int) -> tuple[list[tuple[int, int]], int]:
    """The recursion as the method's page writes it, every window counted on its own."""
    frames = len(still) + 1

    def gain(first: int, last: int) -> int:
        return (last - first) * int(still[first:last].all(dim=0).sum()) if last > first else 0

    best, length = [0], []
    for i in range(frames):
        value, chosen = best[i], 1
        for w in range(2, min(i + 1, max_window) + 1):
            candidate = best[i + 1 - w] + gain(i - w + 1, i)
            if candidate > value:
                value, chosen = candidate, w
        best.append(value)
        length.append(chosen)
    segments, stop = [], frames
    while stop:
        segments.append((stop - length[stop - 1], stop))
        stop -= length[stop - 1]
    return segments[::-1], best[-1]


@st.composite
def videos(draw) -> Tensor:
    """(T - 1, N) bool: anything from cuts everywhere to a photograph, with runs of either."""
    frames, n = draw(st.integers(1, 24)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    share = draw(st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.95, 1.0]))
    still = torch.rand(frames - 1, n, generator=generator) < share
    return still & (torch.rand(frames - 1, 1, generator=generator) < draw(st.sampled_from([0.7, 0.9, 1.0])))


windows = st.sampled_from([1, 2, 3, 5, 8, 1024])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(still=videos(), max_window=windows)
def test_equals_the_recursion(still, max_window) -> None:
    assert temporal_segmentation(still, max_window) == described(still, max_window)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(still=videos(), max_window=windows)
def test_what_is_handed_out_early_is_final(still, max_window) -> None:
    """Both exact rules: segments handed out while the video runs are those of the whole video."""
    whole, saved = temporal_segmentation(still, max_window)
    segmenter, found = TemporalSegmenter(max_window), []
    for t in range(len(still) + 1):
        segmenter.push(still[t - 1] if t else None)
        found += segmenter.settled()
        if t and not still[t - 1].any():
            assert segmenter.undecided <= 1  # nothing crosses a cut
    assert found + segmenter.finish() == whole
    assert segmenter.saved == saved


@settings(max_examples=60, deadline=None, derandomize=True)
@given(still=videos(), limit=st.integers(1, 9))
def test_a_forced_end_still_tiles_the_video(still, limit) -> None:
    segmenter, found = TemporalSegmenter(), []
    for t in range(len(still) + 1):
        segmenter.push(still[t - 1] if t else None)
        found += segmenter.settled()
        if segmenter.undecided >= limit:
            found += segmenter.finish()
        assert segmenter.undecided < limit
    found += segmenter.finish()
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == len(still) + 1
    counted = sum((b - a - 1) * int(still[a : b - 1].all(dim=0).sum()) for a, b in found)
    assert counted == segmenter.saved <= temporal_segmentation(still)[1]


def test_ties_prefer_the_single_frame_then_the_shortest_window() -> None:
    # one place still in both steps, another only in the second: 2 * 1 against 1 * 2
    still = torch.tensor([[True, False], [True, True]])
    assert temporal_segmentation(still) == ([(0, 1), (1, 3)], 2)
    assert temporal_segmentation(torch.zeros(3, 4, dtype=torch.bool)) == ([(0, 1), (1, 2), (2, 3), (3, 4)], 0)


def test_the_ends_of_the_range() -> None:
    assert temporal_segmentation(torch.zeros(0, 4, dtype=torch.bool)) == ([(0, 1)], 0)
    photograph = torch.ones(9, 4, dtype=torch.bool)
    assert temporal_segmentation(photograph) == ([(0, 10)], 36)
    assert temporal_segmentation(photograph, 4)[1] == 3 * 4 * 2 + 4
    assert temporal_segmentation(photograph, 1) == ([(t, t + 1) for t in range(10)], 0)


def test_a_long_video_needs_no_table_of_frames(meter) -> None:
    still = torch.rand(600, 7) < 0.97
    with meter:
        temporal_segmentation(still)
    assert meter.largest <= 601 * 7


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_window=0; allowed: an int >= 1"):
        TemporalSegmenter(0)
