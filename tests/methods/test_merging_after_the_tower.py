"""ToMe and PiToMe at the projector: rounds on the tokens handed to the language model."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.layout import Layout
from tokenreduce.matching import in_rounds, match
from tokenreduce.tokens import VisualTokens

METHODS = {"tome": tr.ToMe, "pitome": tr.PiToMe}


def tokens(n: int, batch: int = 2, width: int = 8) -> VisualTokens:
    made = torch.randn(batch, n, width, generator=torch.Generator().manual_seed(n))
    return VisualTokens(made, Layout(1, n), amount=4)


@pytest.mark.parametrize("weighted", [True, False])
def test_rounds_equal_merging_step_by_step(weighted):
    given = tokens(23)
    given.size = torch.arange(1.0, 24).expand(2, -1)
    plan = in_rounds(given, [5, 4, 0, 3], lambda x, r, _: match(x, r), weighted=weighted)
    x, size = given.features, given.size
    for r in (5, 4, 3):
        step = match(x, r).merge(0, weight=size if weighted else None)
        x = step.carry(x)
        size = torch.stack(
            [torch.stack([s[a == k].sum() for k in range(step.num_kept)]) for s, a in zip(size, step.assign)]
        )
    torch.testing.assert_close(plan.carry(given.features), x)
    assert plan.num_kept == 11
    assert torch.equal(plan.assign.gather(1, plan.source), torch.arange(11).expand(2, -1))


def test_a_round_merges_at_most_half_and_one_token_stays():
    plan = in_rounds(tokens(5), [9, 9, 9, 9], lambda x, r, _: match(x, r))
    assert plan.num_kept == 1
    torch.testing.assert_close(plan.carry(tokens(5).features), tokens(5).features.mean(dim=1, keepdim=True))


def test_equal_tokens_merge_first():
    x = torch.eye(8)[None].repeat(1, 2, 1)[:, torch.randperm(16, generator=torch.Generator().manual_seed(3))]
    plan = tr.ToMe(at="projector", r=3).reduce(VisualTokens(x, Layout(4, 4), amount=1))
    merged = plan.carry(x)[0]
    assert plan.num_kept == 13
    assert {tuple(row) for row in merged.tolist()} <= {tuple(row) for row in torch.eye(8).tolist()}


@pytest.mark.parametrize("order", ["raster", "reference"])
@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_counts_are_exact_and_the_order_is_the_one_asked_for(cls, order):
    model = zoo.build("qwen2_5_vl")
    method = cls(keep=5, at="projector", output_order=order)
    step = method.plan(_facts(model))[0]
    given = tokens(16)
    given.amount = step.amount
    plan = method.reduce(given)
    assert plan.num_kept == 5
    assert plan.positions == ("keep" if order == "raster" else "renumber")
    assert (plan.source.diff(dim=1) > 0).all() == (order == "raster")
    assert torch.equal(plan.carry(given.features), group_mean(given.features, plan.assign, 5, plan.weight))


@pytest.mark.parametrize("rate", [{"r": 2}, {"rho": 0.8}, {"r": [3, 1]}], ids=str)
def test_rates(rate):
    cls = tr.PiToMe if "rho" in rate else tr.ToMe
    given = tokens(20)
    model = zoo.build("gemma3")
    given.amount = cls(at="projector", **rate).plan(_facts(model))[0].amount
    rounds = int(given.amount)
    assert rounds > 1
    plan = cls(at="projector", **rate).reduce(given)
    if "rho" in rate:
        n = 20
        for _ in range(rounds):
            n -= int(n - n * 0.8)
    else:
        n = 20 - (2 * rounds if rate["r"] == 2 else 4)
    assert plan.num_kept == n


@pytest.mark.parametrize("key", ["paddleocr_vl", "kimi_k25", "ovis2", "llava_onevision"])
@pytest.mark.parametrize("name", METHODS)
def test_families_without_units_merge_at_the_projector_and_refuse_the_encoder(name, key):
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    if key != "llava_onevision":
        with pytest.raises(ValueError, match=rf"{name}.*make no units.*at='projector'"):
            tr.wrap(model, name, at="encoder")
        with pytest.raises(ValueError, match=r"strict=True would run .* in place of patches"):
            tr.wrap(model, name, strict=True)
    with (
        tr.wrapped(model, name, keep=0.5, **({"at": "projector"} if key == "llava_onevision" else {})),
        torch.no_grad(),
    ):
        model(**inputs)
        report = tr.report(model)
    assert len(report.substitutes) == (key != "llava_onevision")
    assert report.tokens_kept == [[round(0.5 * n) for n in row] for row in report.tokens_in]


def test_pruning_belongs_to_the_encoder():
    with pytest.raises(ValueError, match=r"prune=True.*encoder"):
        tr.wrap(zoo.build("gemma3"), "pitome", at="projector", prune=True)


def _facts(model):
    from tokenreduce.adapters.registry import family_of

    return family_of(model).facts()
