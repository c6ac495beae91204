"""PixelPrune and RLT against their rules written out one unit at a time, and their budgets."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.tokens import VisualTokens

UNIT = PixelUnit(4, 3, 1, 2, 2)


def page(height: int, width: int, seed: int = 0, images: int = 1, frames: int = 1) -> VisualTokens:
    """Units of few values, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    n = height * width * frames
    values = torch.randint(0, 2, (images, n, 1), generator=generator).float().expand(images, n, 48) / 2
    values = values + torch.randint(0, 3, (images, n, 48), generator=generator) / 100
    return VisualTokens(values, Layout(height, width, frames=frames), stage="pixels", amount=UNIT)


def by_hand(x, tau: float, anchored: bool) -> list[int]:
    """Kept units of one picture ``x`` (h, w, D), by the rule as it is written."""
    known, kept = x.clone(), []

    def like(a, b):
        return float((a - b).abs().max()) <= tau

    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            if r == c == 0:
                kept.append(0)
                continue
            look = known if anchored else x
            if r == 0:
                guess = look[r, c - 1]
            elif c == 0:
                guess = look[r - 1, c]
            else:
                a, b, between = look[r, c - 1], look[r - 1, c], look[r - 1, c - 1]
                guess = b if like(between, a) and not like(between, b) else a
            if like(x[r, c], guess):
                known[r, c] = guess
            else:
                kept.append(r * x.shape[1] + c)
    return kept


def kept_of(method, tokens) -> list[list[int]]:
    plan = method.reduce(tokens).check(tokens)
    return [(row >= 0).nonzero()[:, 0].tolist() for row in plan.assign]


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("tau", [0.0, 0.012, 0.6])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (7, 9)])
def test_the_rule_one_unit_at_a_time(shape, tau, anchored):
    tokens = page(*shape, images=3)
    found = kept_of(tr.PixelPrune(threshold=tau, anchored=anchored), tokens)
    assert found == [by_hand(x.view(*shape, -1), tau, anchored) for x in tokens.features]


def test_floor_ceiling_and_fixed_budgets_take_the_least_foretold():
    tokens = page(6, 8, images=2)
    free = kept_of(tr.PixelPrune(threshold=0.3), tokens)
    assert all(1 < len(row) < 48 for row in free)
    for row, own in zip(kept_of(tr.PixelPrune(threshold=0.3, keep="auto:-5"), tokens), free):
        assert len(row) == 5
        assert set(row) < set(own)
    for row, own in zip(kept_of(tr.PixelPrune(threshold=0.3, keep="auto:40-"), tokens), free):
        assert len(row) == max(40, len(own))
        assert set(own) <= set(row)
    assert [len(row) for row in kept_of(tr.PixelPrune(keep=7), tokens)] == [7, 7]


def test_values_that_are_no_numbers_are_foretold_by_nothing():
    tokens = page(3, 4)
    tokens.features[:] = 0.5
    tokens.features[0, 6, 3] = torch.nan
    assert kept_of(tr.PixelPrune(threshold=0.9), tokens) == [[0, 6, 7, 10]]  # and the edge it makes below
    assert kept_of(tr.PixelPrune(), tokens)[0][:2] == [0, 6]


def test_the_frame_before_foretells_and_a_still_image_is_read_once():
    still = page(4, 5)
    film = VisualTokens(
        torch.cat([still.features, still.features], dim=1), Layout(4, 5, frames=2), stage="pixels", amount=UNIT
    )
    assert kept_of(tr.PixelPrune(), film) == kept_of(tr.PixelPrune(), still)
    assert kept_of(tr.PixelPrune(threshold=0.02), film) == kept_of(tr.PixelPrune(threshold=0.02), still)
    copies = still.features.unflatten(-1, (4, 3, 1, 2, 2)).expand(-1, -1, -1, -1, 2, -1, -1).clone()
    copies[:, :, :, :, 1] += torch.rand(20, 4, 3, 2, 2)  # what a processor would never write
    twice = VisualTokens(copies.flatten(2), still.layout, stage="pixels", amount=UNIT._replace(frames=2))
    assert kept_of(tr.PixelPrune(), twice) == kept_of(tr.PixelPrune(), still)


def test_rlt_holds_the_end_of_a_step_against_the_beginning_of_the_one_before():
    unit = PixelUnit(1, 3, 2, 4, 4)
    frames = torch.zeros(1, 3, 2, 1, 3, 2, 4, 4)  # steps of two frames, two places
    frames[0, 0, 0, :, :, 1] = 0.5  # only within the first step: it goes back, and nothing shows
    frames[0, 1, 1, :, :, 1] = 0.5  # the end of the second step differs from the beginning of the first
    frames[0, 2, 1] = 0.5  # the third step as the end of the second; but that began otherwise
    tokens = VisualTokens(frames.view(1, 6, -1), Layout(1, 2, frames=3), stage="pixels", amount=unit)
    assert kept_of(tr.RLT(), tokens) == [[0, 1, 3, 5]]
    assert kept_of(tr.RLT(threshold=3), tokens) == [[0, 1]]
    assert kept_of(tr.RLT(keep=3), tokens) == [[0, 1, 3]]
    with pytest.raises(ValueError, match=r"is of 1 channels; allowed: 3"):
        tr.RLT(deviation=(1.0,)).reduce(tokens)


def test_how_long_a_token_stands():
    from tokenreduce.provenance import run_lengths

    kept = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool().flatten()
    assert run_lengths(kept, Layout(1, 3, frames=4)).tolist() == [3, 1, 4, 3, 1]
    assert run_lengths(torch.ones(6, dtype=torch.bool), Layout(2, 3)).tolist() == [1] * 6


def test_parameters_are_checked():
    for wrong in ({"threshold": 2}, {"metric": "l7"}, {"scan": "spiral"}, {"tower_layer": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tr.PixelPrune(**wrong)
    with pytest.raises(ValueError, match=r"deviation=\(0,\)"):
        tr.RLT(deviation=(0,))
