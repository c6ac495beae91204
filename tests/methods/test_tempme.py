"""TempMe: what merges in which block, its budget, and videos through encoders by themselves."""

from __future__ import annotations

import itertools
import math

import pytest
import reduced
import torch
from encoder_models import small, timm_model, tower

import tokenreduce as tr
from tokenreduce.methods.tempme import TempMe, pairs_of_clip

FOUR = {"blocks": (2, 3), "joins": (2, 2), "r": 1}  # four frames in four blocks


def paired_by_hand(metric, r, prefix):
    """Of one sequence (N, C): the groups of rows that come out, one by one."""
    unit = torch.nn.functional.normalize(metric, dim=1)
    even = prefix % 2 == 0
    sources = [i for i in range(prefix, len(unit)) if ((i - prefix) % 2 == 0) == even]
    others = [i for i in range(prefix, len(unit)) if i not in sources]
    best = {s: max(others, key=lambda o, s=s: (float(unit[s] @ unit[o]), -o)) for s in sources}
    leaving = sorted(sources, key=lambda s: (-float(unit[s] @ unit[best[s]]), s))[:r]
    groups = [[i] for i in range(prefix)] + [[s] for s in sources if s not in leaving]
    return groups + [[o, *(s for s in leaving if best[s] == o)] for o in others]


@pytest.mark.parametrize(("n", "prefix", "r"), [(13, 1, 4), (14, 2, 6), (15, 3, 5), (12, 0, 6), (9, 4, 1)])
def test_pairs_are_those_of_a_plain_loop(n, prefix, r):
    x, size = torch.randn(1, n, 6), torch.rand(1, n) + 0.5
    plan = pairs_of_clip(x, r, prefix, size)
    rows = plan.carry(x)[0]
    groups = paired_by_hand(x[0], r, prefix)
    assert len(rows) == len(groups) == n - r
    for row, own in zip(rows, groups):
        weight = size[0, own] / size[0, own].sum()
        torch.testing.assert_close(row, weight @ x[0, own])


def test_every_budget_is_hit():
    hit = 0
    for patches, prefix, depth in itertools.product((16, 49, 196), (0, 1, 5), (4, 12)):
        for keep in (0.9, 0.5, 0.3, 0.21, 0.15, 7):
            method = TempMe(keep=keep)
            try:
                counts = method.counts(patches, prefix, depth)
            except ValueError as error:
                assert "allowed: at least" in str(error)  # noqa: PT017
                continue
            n, front, at = patches + prefix, prefix, method.joined_blocks(depth)
            for block, merges in enumerate(counts):
                clips = method.joins[at.index(block)] if block in at else 1
                n, front = n * clips, front * clips
                for count in merges[:2]:
                    assert 0 <= count <= (n - front) // 2
                    n -= count
            assert n - front == (round(keep * patches * 12) if isinstance(keep, float) else keep * 12)
            hit += 1
    assert hit > 90


def test_blocks_are_those_of_the_paper_in_proportion():
    assert [TempMe().joined_blocks(depth) for depth in (12, 24, 4, 3)] == [
        (8, 9, 10),
        (16, 18, 20),
        (1, 2, 3),
        (0, 1, 2),
    ]
    with pytest.raises(ValueError, match=r"joins=\(2, 2, 3\) in a tower of 2 blocks"):
        TempMe().joined_blocks(2)
    with pytest.raises(ValueError, match=r"blocks=\(2, 3\); allowed: 0 to 2"):
        TempMe(**FOUR).joined_blocks(3)


TOWERS = ("timm", "timm_registers", "clip", "siglip", "open_clip")


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_videos_through_encoders(name):
    model, pixels = tower(name, 8)

    def read(x):
        found = model(x)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    bare = read(pixels)
    with tr.wrapped(model, TempMe(keep=0.5, frames=4, **FOUR)):
        both = read(pixels)
        trace, report = tr.trace(model), tr.report(model)
        assert report.tokens_in == [[64], [64]]
        assert report.tokens_kept == [[32], [32]]
        assert [image.layout.frames for image in trace.images] == [4, 4]
        for image in trace.images:
            assert sorted(set(image.standing_for().tolist())) == list(range(32))
            frames = [
                {t // 16 for t, own in enumerate(image.standing_for().tolist()) if own == row} for row in range(32)
            ]
            assert any(len(own) > 1 for own in frames)  # merged across frames
        one = read(pixels[4:])
    assert both.shape == bare.shape  # one of each frame
    torch.testing.assert_close(both[4:], one, atol=1e-4 * one.abs().max().item(), rtol=1e-4)
    assert not torch.allclose(both, bare, atol=1e-3 * bare.abs().max().item())
    assert torch.equal(read(pixels), bare)


@torch.no_grad()
def test_equal_frames_stay_as_they_are():
    """Patches of a still merge with their copies, and attention counts them as often: nothing changes.

    The number of patches is odd: of an even one both copies are on the same side of the matching, and never meet.
    """
    model, still = small("vit_tiny_patch16_224", img_size=80), torch.randn(1, 3, 80, 80)
    bare = model.forward_features(still)
    with tr.wrapped(model, TempMe(blocks=(1,), joins=(2,), r=0, cross=0.4, intra=0.0)):
        video = model.forward_features(still.expand(2, -1, -1, -1))
        (image,) = tr.trace(model).images
    assert tr.is_wrapped(model) is False
    merged = image.standing_for().view(2, 25)
    same = sum(int(a == b) for a, b in zip(*merged.tolist()))
    assert same == math.floor(0.4 * 52)  # copies are the most alike
    torch.testing.assert_close(video, bare.expand(2, -1, -1), atol=1e-4 * bare.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_a_full_budget_changes_nothing():
    model, pixels = timm_model("plain"), torch.randn(4, 3, 64, 64)
    bare = model(pixels)
    with tr.wrapped(model, TempMe(keep=1.0, **FOUR)):
        assert torch.equal(model(pixels), bare)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"joins": (2, 1, 3)}, "joins=1; allowed: an int >= 2"),
        ({"joins": 12}, "joins=12; allowed: a tuple"),
        ({"blocks": (1, 2)}, r"blocks=\(1, 2\) with joins=\(2, 2, 3\); allowed: one number for each block"),
        ({"frames": 8}, r"frames=8 with joins=\(2, 2, 3\); allowed: a multiple of 12"),
        ({"cross": 0.7}, "cross=0.7"),
        ({"r": -1}, "r=-1"),
    ],
)
def test_what_is_not_offered_is_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        TempMe(**parameters)


@torch.no_grad()
def test_what_does_not_arrive_in_whole_videos_is_refused():
    model = timm_model("plain")
    with (
        tr.wrapped(model, TempMe(frames=8, **FOUR)),
        pytest.raises(ValueError, match="frames=8, but 4 arrive; allowed: whole"),
    ):
        model(torch.randn(4, 3, 64, 64))
    with pytest.raises(ValueError, match="the vision tower of a llava model encodes each by itself"):
        tr.wrap(reduced.model("llava"), "tempme")
