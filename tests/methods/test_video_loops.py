"""Methods for videos keep what the plain loops keep that the long-video benchmark compares them with."""

from __future__ import annotations

import pytest
import torch
from scripts import script
from video_plans import footage, kept

from tokenreduce.layout import Layout
from tokenreduce.registry import registry
from tokenreduce.signals import AttentionReceived
from tokenreduce.tokens import VisualTokens

VIDEO = script("benchmarks/video.py")


@pytest.mark.parametrize("name", VIDEO.PLAIN)
@pytest.mark.parametrize(("frames", "n"), [(23, 9), (4, 12), (41, 4)])
def test_a_method_keeps_what_its_loop_keeps(name: str, frames: int, n: int) -> None:
    x, method = footage(frames, n, seed=frames), registry()[name](**VIDEO.GIVEN.get(name, {}))
    attention = torch.rand(frames, n, generator=torch.Generator().manual_seed(n))
    heard = {AttentionReceived(0): attention.flatten()[None]} if "attention" in method.looks_at else {}
    layout = Layout(1, n, frames=frames, medium="video")
    plan = method.reduce(VisualTokens(x.flatten(0, 1)[None], layout, signals=heard, amount=(0, 0)))
    assert kept(plan) == VIDEO.PLAIN[name](x, attention, plan.num_kept)
