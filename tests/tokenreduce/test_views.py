"""An image of several views: budgets shared exactly, plans joined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenreduce as tr
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint
from tokenreduce.tokens import VisualTokens
from tokenreduce.views import reduce_views, share_budget, view_of

# a base view, and tiles of which two cells were cut off, in stitched order
TILES = Layout(
    4, 3, cells=(0, 1, 2, 3, 4, 8, 5, 6, 9, 7), views=(Layout(2, 2), Layout(2, 2), Layout(2, 2, cells=(1, 3)))
)


@given(st.integers(0, 40), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_shares_are_exact_and_fair(k, sizes):
    k = min(k, sum(sizes))
    shares = share_budget(k, sizes)
    assert sum(shares) == k
    assert all(0 <= share <= size for share, size in zip(shares, sizes))
    assert all(abs(share - k * size / sum(sizes)) < 1 for share, size in zip(shares, sizes))


def shown(layout: Layout, batch: int = 2, **signals) -> VisualTokens:
    x = torch.randn(batch, layout.num_tokens, 6, generator=torch.Generator().manual_seed(1))
    return VisualTokens(x, layout, signals=signals.get("signals", {}))


def ask(method, tokens: VisualTokens, by: str = "video"):
    views = tokens.layout.split(by)
    of = view_of(views, tokens.source, tokens.source)
    return reduce_views(method, tokens, views, of, [len(own) for _, own in views]), views


def test_the_best_of_each_tile():
    score = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    plan, views = ask(tr.FasterVLM(keep=0.5), shown(TILES, signals={ClsAttention(1): score}))
    assert plan.in_order
    for b in range(2):
        expected = set()
        for (_, own), share in zip(views, (2, 2, 1), strict=True):
            expected |= set(sorted(own, key=lambda n: -score[b, n])[:share])
        assert plan.source[b].tolist() == sorted(expected)
    assert torch.equal(plan.score, score)


def test_buffers_stay_within_a_frame_and_roles_come_along():
    video = Layout(3, 3, frames=4)
    signals = {AttentionReceived(0): torch.rand(2, 36), AttentionReceived(1): torch.rand(2, 36)}
    tokens = shown(video, signals=signals)
    plan, views = ask(tr.HiPrune(keep=20, alpha=1.0), tokens, "frame")
    for t, (layout, own) in enumerate(views):
        index = torch.tensor(own)
        alone = VisualTokens(tokens.features[:, index], layout, signals={s: v[:, index] for s, v in signals.items()})
        single = tr.HiPrune(keep=5, alpha=1.0).reduce(alone)
        assert torch.equal(plan.role[:, index], single.role)
        inside = (plan.source >= 9 * t) & (plan.source < 9 * (t + 1))
        assert torch.equal(plan.source[inside].view(2, -1) - 9 * t, single.source)


@pytest.mark.parametrize("method", [tr.ToMe(keep=5, at="projector"), tr.methods.pool.Pool(keep=5)], ids=repr)
def test_means_stay_within_a_tile(method):
    tokens = shown(TILES)
    tokens.amount = 3
    plan, views = ask(method, tokens)
    assert plan.num_kept == 5
    owner = view_of(views, tokens.source, tokens.source)
    for b in range(2):
        assert all(len(set(owner[b][plan.assign[b] == row].tolist())) == 1 for row in range(5))
    assert torch.equal(plan.carry(tokens.features), group_mean(tokens.features, plan.assign, 5, plan.weight))
    assert (plan.source.diff(dim=1) > 0).all()


def test_a_part_may_lose_everything_and_another_nothing():
    score = torch.arange(10.0).expand(2, -1)
    plan, _ = ask(tr.FasterVLM(keep=1), shown(TILES, signals={ClsAttention(1): score}))
    assert plan.source.tolist() == [[3]] * 2
    whole, _ = ask(tr.FasterVLM(keep=1.0), shown(TILES, signals={ClsAttention(1): score}))
    assert whole.num_kept == 10


def test_tiles_of_one_image_draw_differently():
    tiles = Layout(8, 8, views=(Layout(4, 4),) * 4)
    plan, _ = ask(tr.methods.random.Random(keep=32), shown(tiles, signals={ImageFingerprint(): torch.tensor([3, 9])}))
    drawn = {tuple(n % 16 for n in plan.source[0].tolist() if n // 16 == v) for v in range(4)}
    assert len(drawn) == 4
    assert all(len(own) == 8 for own in drawn)


def test_counts_of_parts_may_depend_on_the_data():
    class Above(tr.Method, register=False):
        name = "above"

        def plan(self, facts):
            return ()

        def reduce(self, tokens):
            kept = tokens.features[..., 0] > 0
            count = kept.sum(dim=1)
            return Reduction(
                source=top_k(kept.float(), int(count.max())),
                assign=torch.where(kept, kept.cumsum(dim=1) - 1, -1),
                valid=torch.arange(int(count.max())) < count[:, None],
                in_order=True,
            )

    tiles = Layout(8, 8, views=(Layout(4, 4),) * 4)
    tokens = shown(tiles, batch=3)
    plan, _ = ask(Above(keep=0.5), tokens)
    assert plan.valid is not None
    for b in range(3):
        expected = (tokens.features[b, :, 0] > 0).nonzero()[:, 0]
        assert torch.equal(plan.source[b][plan.valid[b]], expected)
        assert plan.valid[b][: len(expected)].all()
        assert torch.equal(plan.assign[b][expected], torch.arange(len(expected)))
