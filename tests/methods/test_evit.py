"""EViT: counts per block, what leaves the tower, and where fused tokens go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from encoder_models import timm_model
from golden_cases.common import FACTS
from golden_cases.tome import shown
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.methods.evit import Cut, EViT
from tokenreduce.signals import AttentionReceived, ClsAttention


def rows_after(method: EViT, n: int) -> list[int]:
    """Rows behind [CLS] after each block that reduces, of an encoder alone."""
    facts = dataclasses.replace(FACTS, tower_depth=12, feature_block=11, decoder_depth=0, tower_grid=(1, n))
    x, found, notes = torch.randn(1, n + 1, 4), [], {}
    for step in method.plan(facts):
        tokens = shown(x, 1, None, step.amount, {need: torch.rand(1, x.shape[1]) for need in step.needs})
        tokens.notes = notes
        plan = method.reduce(tokens).check(tokens)
        notes, x = plan.notes, plan.carry(x)
        found.append(x.shape[1] - 1)
    return found


@pytest.mark.parametrize(
    ("rate", "fused", "dropped"),
    [
        (0.9, [178, 162, 147], [177, 160, 144]),
        (0.8, [158, 128, 104], [157, 126, 101]),
        (0.7, [139, 99, 71], [138, 97, 68]),
        (0.6, [119, 73, 45], [118, 71, 43]),
        (0.5, [99, 51, 27], [98, 49, 25]),
    ],
)
def test_rows_of_a_deit_as_published(rate, fused, dropped):
    assert rows_after(EViT(keep_rate=rate), 196) == fused
    assert rows_after(EViT(keep_rate=rate, fuse_token=False), 196) == dropped


@pytest.mark.parametrize("depth", [12, 24, 27])
def test_blocks_are_a_quarter_half_and_three_quarters_of_the_way_up(depth):
    facts = dataclasses.replace(FACTS, tower_depth=depth, feature_block=depth - 2)
    blocks = [step.layer for step in EViT(keep=0.5).plan(facts) if step.needs]
    assert blocks == {12: [3, 6, 9], 24: [6, 12, 18], 27: [7, 14, 20]}[depth]
    assert {type(step.needs[0]) for step in EViT(keep=0.5).plan(facts) if step.needs} == {ClsAttention}
    blind = dataclasses.replace(facts, has_cls=False)
    assert {type(step.needs[0]) for step in EViT(keep=0.5).plan(blind) if step.needs} == {AttentionReceived}
    assert EViT().substitutes(blind)
    assert not EViT().substitutes(facts)


@pytest.mark.parametrize("keep_fused", [True, False])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 16, 50])
def test_the_budget_is_hit_whichever_tokens_are_ranked_first(keep_fused, n):
    facts = dataclasses.replace(FACTS, tower_grid=(1, n))
    for k in range(1, n):
        method, notes, x = EViT(keep=k, keep_fused=keep_fused), {}, torch.randn(3, n + 1, 4)
        for step in method.plan(facts):
            score = torch.rand(3, x.shape[1])
            score[0] += torch.arange(x.shape[1])  # an earlier fused token first
            tokens = shown(x, 1, None, step.amount, dict.fromkeys(step.needs, score))
            tokens.layout, tokens.notes = tr.Layout(1, n), notes
            plan = method.reduce(tokens).check(tokens)
            notes, x = {**notes, **plan.notes}, plan.carry(x)
        assert x.shape[1] == k + 1, (n, k)


def test_a_fused_token_is_the_sum_of_its_patches_by_their_attention():
    x, score = torch.randn(1, 7, 4), torch.tensor([[0.1, 0.05, 0.3, 0.1, 0.2, 0.05, 0.2]])
    tokens = shown(x, 1, None, Cut(number=2), {ClsAttention(0): score})
    plan = EViT().reduce(tokens).check(tokens)
    assert plan.source.tolist() == [[0, 2, 4, 6]]  # of two of 0.2, the first; the fused one sits at the other
    fused = score[0, [1, 3, 5, 6]] @ x[0, [1, 3, 5, 6]]
    torch.testing.assert_close(plan.carry(x)[0, -1], fused)
    assert plan.assign.tolist() == [[0, 3, 1, 3, 2, 3, 3]]
    torch.testing.assert_close(EViT(fuse_norm=True).reduce(tokens).carry(x)[0, -1], fused / 0.4)


def test_an_earlier_fused_token_is_absorbed_only_where_it_must_not_leave():
    x, score = torch.randn(1, 5, 4), torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
    tokens = shown(x, 1, None, Cut(number=2), {ClsAttention(0): score})
    tokens.notes = {"fused": torch.tensor([[False, False, False, False, True]])}
    plan = EViT().reduce(tokens)
    assert plan.source.tolist() == [[0, 4, 3, 2]]
    assert plan.notes["fused"].tolist() == [[False, False, True, False, True]]
    tokens.amount = Cut(number=2, absorbs=True)
    plan = EViT().reduce(tokens)
    assert plan.source.tolist() == [[0, 3, 2, 1]]
    assert plan.notes["fused"].tolist() == [[False, True, False, False, False]]
    torch.testing.assert_close(plan.carry(x)[0, -1], 0.1 * x[0, 1] + 0.4 * x[0, 4])


@torch.no_grad()
def test_the_rows_of_a_language_model_are_patches_and_of_an_encoder_alone_have_a_fused_one():
    model = llava()
    inputs = prompt(model, [2, 1], "left")
    for method, left in ((EViT(keep=7), 7), (EViT(keep=7, keep_fused=True), 16), (EViT(keep_rate=0.5), 5)):
        with tr.wrapped(model, method):
            model(**inputs)
            for image in tr.trace(model).images:
                assert len(image.kept()) == (5 if left == 5 else 7)
                assert (image.standing_for() >= 0).sum() == left
    tower = timm_model("plain")
    with tr.wrapped(tower, EViT(keep=7)):
        tower(torch.randn(2, 3, 64, 64))
        assert tr.report(tower).tokens_kept == [[7], [7]]
        assert all((image.standing_for() >= 0).all() for image in tr.trace(tower).images)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"keep_rate": 0.0}, r"keep_rate=0.0; allowed: the share that a block keeps, in \(0, 1\]"),
        ({"keep_rate": [0.5, 2]}, r"keep_rate=\[0.5, 2\]; allowed"),
        ({"keep": 0.5, "keep_rate": 0.5}, "both set the number of tokens; give one of them"),
        ({"keep_rate": [0.5], "blocks": (1,)}, "has a rate for every block; give one"),
        ({"fuse_token": False, "keep_fused": True}, "keep_fused=True belongs to fuse_token=True"),
        ({"fuse_token": False, "fuse_norm": True}, "fuse_norm=True belongs to fuse_token=True"),
    ],
)
def test_what_does_not_fit_together_is_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        EViT(**parameters)


def test_rates_and_blocks_beyond_the_tower_are_refused():
    with pytest.raises(ValueError, match="keep_rate has 5 entries for the 4 blocks of this tower; give at most 4"):
        tr.wrap(timm_model("plain"), EViT(keep_rate=[0.9] * 5))
    with pytest.raises(ValueError, match="layer=7 at stage 'encoder'; allowed: an int from 0 to 3"):
        tr.wrap(timm_model("plain"), EViT(keep=0.5, blocks=(7,)))
