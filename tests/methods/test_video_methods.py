"""What every method for videos keeps: counts, batches, ties, refusals."""

from __future__ import annotations

import pytest
import torch
from video_plans import FACTS, SIZES, footage, kept, planned

from tokenreduce.layout import Layout
from tokenreduce.registry import registry
from tokenreduce.tokens import VisualTokens

VIDEO = [name for name, cls in registry().items() if cls.media == ("video",) and "projector" in cls.stages]


#: where a second step shares the budget, the first alone
ALONE: dict[str, dict] = {"flashvid": {"inner_keep": 1.0}}


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize(("frames", "n"), SIZES)
@pytest.mark.parametrize("keep", [0.3, 0.55])
def test_counts(name: str, frames: int, n: int, keep: float) -> None:
    method = registry()[name](keep=keep, **ALONE.get(name, {}))
    whole = frames * n
    tokens, plan = planned(method, footage(frames, n)[None])
    wanted = max(method.leaving(tokens) or 0, method.always_left(tokens.layout))
    everything_joined = bool((plan.assign >= 0).all())
    found = len(kept(plan))
    assert found == min(wanted, whole) or (everything_joined and found < wanted)


@pytest.mark.parametrize("name", VIDEO)
def test_a_batch_equals_its_videos(name: str) -> None:
    videos = torch.stack([footage(9, 6, seed=s) for s in range(3)])
    method = registry()[name](keep=0.4, **ALONE.get(name, {}))
    _, plan = planned(method, videos)
    for b, video in enumerate(videos):
        _, alone = planned(method, video[None])
        assert kept(plan, b) == kept(alone)
        assert torch.equal(plan.assign[b], alone.assign[0])


@pytest.mark.parametrize("name", VIDEO)
def test_a_still_video_goes_by_the_order_of_its_tokens(name: str) -> None:
    """Every tie is decided alike, whatever the dtype."""
    x = torch.randn(1, 6, 1, generator=torch.Generator().manual_seed(1)).expand(8, 6, 16)[None].clone()
    for dtype in (torch.float32, torch.bfloat16):
        _, plan = planned(registry()[name](keep=0.5, **ALONE.get(name, {})), x.to(dtype))
        _, again = planned(registry()[name](keep=0.5, **ALONE.get(name, {})), x.to(dtype))
        assert torch.equal(plan.assign, again.assign)


@pytest.mark.parametrize("name", VIDEO)
def test_frames_that_lack_tokens_are_refused(name: str) -> None:
    method = registry()[name](keep=0.5, **ALONE.get(name, {}))
    step = method.plan(FACTS)[0]
    layout = Layout(2, 2, frames=2, cells=(0, 1, 2, 3, 4, 6), medium="video")
    tokens = VisualTokens(
        torch.randn(1, 6, 8), layout, amount=step.amount, signals={need: torch.rand(1, 6) for need in step.needs}
    )
    with pytest.raises(ValueError, match=rf"method='{name}' compares whole frames.*allowed: first"):
        method.reduce(tokens)
