"""GTP: the graph, the counts, and its blocks in a tower against the same by hand, with whole maps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from encoder_models import shaped, timm_model, transformers_model, whole_model
from golden_cases.common import FACTS
from golden_cases.gtp import by_block
from golden_cases.tome import shown
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.block_signals import BlockInput
from tokenreduce.methods.gtp import GTP


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"selection": "CLSAttnMean"},
        {"selection": "IMGAttnMax", "graph_type": "Semantic", "num_neighbours": 3},
        {"selection": "SumAttnMean", "graph_type": "Spatial", "token_scale": False},
        {"selection": "MixedAttnMean", "propagation": "None"},
    ],
    ids=lambda parameters: parameters.get("selection", "default"),
)
@pytest.mark.parametrize("name", ["plain", "no_fused_attention"])
def test_a_tower_equals_its_blocks_by_hand(name, parameters):
    model = timm_model(name)
    pixels = torch.randn(2, 3, 64, 64)
    method = GTP(num_prop=2, **parameters)
    expected = by_block(model, pixels, method, 1)["tokens"]
    tolerance = {"atol": 1e-4 * expected.abs().max().item(), "rtol": 1e-4}
    with tr.wrapped(model, method, output_length="reduced"):
        for grad in (False, False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(model.forward_features(pixels), expected, **tolerance)


def test_a_tower_without_cls_and_an_oblong_grid():
    model = timm_model("mae_pool")
    pixels = torch.randn(1, 3, 64, 64)
    with tr.wrapped(model, GTP(keep=6), output_length="reduced"), torch.no_grad():
        assert model.forward_features(pixels).shape[1] == 6
    tokens = dataclasses.replace(shown(torch.zeros(1, 6, 1), 0, None, 1), layout=tr.Layout(2, 3))
    tokens.signals = {BlockInput(0): torch.randn(1, 6, 4)}
    edges = GTP(graph_type="Spatial").graph(tokens)[0] > 0
    assert edges[0].nonzero()[:, 0].tolist() == [1, 3, 4]
    assert edges[1].nonzero()[:, 0].tolist() == [0, 2, 3, 4, 5]


def test_exactly_as_many_alike_neighbours_as_asked_for():
    tokens = shown(torch.zeros(1, 21, 1), 1, None, 1, {BlockInput(0): torch.randn(1, 21, 4)})
    for count in (1, 5, 50):
        edges = GTP(graph_type="Semantic", num_neighbours=count).graph(tokens)[0] > 0
        assert edges.sum(dim=1).tolist() == [min(count, 19)] * 20
        assert not edges.diagonal().any()


def test_what_leaves_goes_to_its_neighbours_and_weighs_on():
    x = torch.randn(1, 4, 3)
    tokens = shown(x, 1, None, 1)
    graph = torch.tensor([[[0.0, 0, 0.5], [0, 0, 0.25], [0.5, 0.25, 0]]])
    notes = {"graph": graph, "scale": torch.tensor([[1.0, 1, 2]])}
    plan = GTP(num_prop=1, alpha=0.4).propagated(tokens, torch.tensor([[1, 0]]), torch.tensor([[2]]), notes)
    plan.check(tokens)
    torch.testing.assert_close(
        plan.carry(x)[0], torch.stack([x[0, 0], x[0, 2] + 0.1 * x[0, 3], x[0, 1] + 0.2 * x[0, 3]])
    )
    torch.testing.assert_close(plan.counts, torch.tensor([[1, 1.2, 1.4]]))
    assert plan.assign.tolist() == [[0, 2, 1, 2]]  # most of it went to row 2
    assert plan.notes["scale"].tolist() == [[pytest.approx(1.4), pytest.approx(1.2), 2]]


def test_counts_of_blocks():
    facts = dataclasses.replace(FACTS, tower_depth=4, feature_block=2, tower_grid=(4, 4))
    assert [step.amount for step in GTP(keep=6).plan(facts)] == [4, 3, 3]
    assert [step.amount for step in GTP(keep=15).plan(facts)] == [1]
    assert [(s.layer, s.amount) for s in GTP(num_prop=[0, 3]).plan(facts)] == [
        (0, 0),
        (1, 3),
    ]  # the first makes the graph
    assert GTP(num_prop=0).is_identity(16)


@torch.no_grad()
def test_images_of_several_sizes_equal_each_by_itself():
    grids = [(3, 5), (2, 6), (4, 4)]
    model, inputs = whole_model("siglip2"), shaped(*grids, length=18)
    with tr.wrapped(model, GTP(keep=0.5)):
        together = model.get_image_features(**inputs).pooler_output
        for i, (height, width) in enumerate(grids):
            n = height * width
            one = {name: x[i : i + 1] if name == "spatial_shapes" else x[i : i + 1, :n] for name, x in inputs.items()}
            alone = model.get_image_features(**one).pooler_output
            torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_propagated_patch_stands_in_the_row_that_was_handed_most_of_it():
    model = llava()
    with tr.wrapped(model, GTP(keep=6)):
        model(**prompt(model, [2, 1], "left"))
        for image in tr.trace(model).images:
            assert len(image.kept()) == 6
            assert image.standing_for()[image.kept()].tolist() == list(range(6))
            assert (image.standing_for() >= 0).sum() > 6
    tower = transformers_model("dinov2_with_registers")
    with tr.wrapped(tower, GTP(keep=6)):
        tower(torch.randn(2, 3, 32, 32))
        assert tr.report(tower).tokens_kept == [[6], [6]]


@pytest.mark.parametrize(
    ("parameters", "error", "said"),
    [
        ({"keep": 0.5, "num_prop": 3}, ValueError, "both set the number of tokens; give one of them"),
        ({"num_prop": (3, 1)}, TypeError, r"num_prop=\(3, 1\); allowed: an int >= 0"),
        ({"num_prop": -1}, TypeError, "r=-1"),
        ({"selection": "Random"}, ValueError, "selection='Random'"),
        ({"num_neighbours": 0}, ValueError, "num_neighbours=0"),
        ({"alpha": 2.0}, ValueError, "alpha=2.0"),
        ({"propagation": "Mean"}, ValueError, "propagation='Mean'"),
    ],
)
def test_what_is_not_offered_is_refused(parameters, error, said):
    with pytest.raises(error, match=said):
        GTP(**parameters)


def test_a_rank_by_cls_needs_one():
    with pytest.raises(ValueError, match=r"has no \[CLS\] token"):
        tr.wrap(timm_model("mae_pool"), GTP(selection="CLSAttnMax"))
