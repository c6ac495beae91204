"""Windows of a video, each by itself, keep what the whole video keeps, where a method's segments end with the windows."""

from __future__ import annotations

import pytest
import torch
from video_plans import kept

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.signals import AttentionReceived
from tokenreduce.tokens import VisualTokens

WINDOW, N = 8, 6
HOLITOM = {"keep": 0.25, "inner_keep": 1.0}
BY_SEGMENT = [
    tr.DyCoke(keep=0.5),
    tr.HoliTom(ratio="segment", **HOLITOM),
    tr.FastVID(keep=0.5, least_segments=1),
    tr.FlashVID(keep=0.5, least_segments=1, inner_keep=1.0),
    tr.LongVLM(keep=0.25, segment=4, groups=2, global_tokens=0),
]
BY_VIDEO = [tr.HoliTom(**HOLITOM), tr.VidCom2(keep=0.5), tr.EVS(keep=0.5)]


def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Three scenes, each as long as a window, the second one busier; the places are almost those of the frame before."""
    made = torch.Generator().manual_seed(3)
    frames = []
    for noise in (0.02, 0.4, 0.1):
        scene = torch.randn(N, 16, generator=made)
        frames += [scene + noise * torch.randn(N, 16, generator=made) for _ in range(WINDOW)]
    return torch.stack(frames), torch.rand(3 * WINDOW, N, generator=made)


def plan(method: Method, x: torch.Tensor, attention: torch.Tensor) -> tr.Reduction:
    heard = (
        {}
        if method.name in ("dycoke", "longvlm", "vidcom2", "evs")
        else {AttentionReceived(0): attention.flatten()[None]}
    )
    layout = Layout(2, 3, frames=len(x))
    return method.reduce(VisualTokens(x.flatten(0, 1)[None], layout, signals=heard, amount=(0, 0)))


def both_ways(method: Method) -> tuple[list[int], list[int], list[torch.Tensor]]:
    """Places kept of the whole video, and window by window; and the tokens of both."""
    x, attention = scenes()
    whole = plan(method, x, attention)
    starts = range(0, len(x), WINDOW)
    windows = [plan(method, x[t : t + WINDOW], attention[t : t + WINDOW]) for t in starts]
    places = [t * N + place for t, one in zip(starts, windows) for place in kept(one)]
    rows = [rows_of(one, x[t : t + WINDOW]) for t, one in zip(starts, windows)]
    return kept(whole), places, [rows_of(whole, x), torch.cat(rows, dim=1)]


def rows_of(one: tr.Reduction, x: torch.Tensor) -> torch.Tensor:
    return one.carry(x.flatten(0, 1)[None]) if one.features is None else one.features


@pytest.mark.parametrize("method", BY_SEGMENT, ids=lambda m: m.name)
def test_windows_that_end_with_segments_are_the_whole_video(method: Method) -> None:
    whole, windows, rows = both_ways(method)
    assert windows == whole
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("method", BY_VIDEO, ids=lambda m: m.name)
def test_what_shares_a_budget_over_the_video_keeps_others_in_windows(method: Method) -> None:
    whole, windows, _ = both_ways(method)
    assert windows != whole
