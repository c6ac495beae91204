"""DyVTE: gates, a layer of its own for each sample, and the same layer for all."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt
from random_gates import LAYERS, gates

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models
from tokenreduce.eval.method_check import contracts
from tokenreduce.methods import dyvte
from tokenreduce.tokens import Rows


@pytest.fixture(scope="module")
def model():
    return llava()


def exits(model) -> list[int]:
    """Of each picture, how many layers see it."""
    lengths = [[len(image.kept(layer)) for layer in range(LAYERS)] for image in tr.trace(model).images]
    assert {n for own in lengths for n in own} <= {0, 16}
    assert all(own == sorted(own, reverse=True) for own in lengths)
    return [sum(n > 0 for n in own) for own in lengths]


@torch.no_grad()
def by_hand(model, inputs, weights, bias: float = 0.0) -> list[int]:
    """Of each sample, how many layers see its pictures, by a loop over what an unreduced model hands from layer to layer."""
    states = model(**inputs, output_hidden_states=True).hidden_states[1:]
    found = []
    for b, ids in enumerate(inputs["input_ids"]):
        behind = int((ids == IMAGE_TOKEN).nonzero().max()) + 1
        end = int(inputs["attention_mask"][b].nonzero().max()) + 1
        seen = LAYERS
        for layer in reversed(range(LAYERS - 1)):
            text = states[layer][b, behind:end]
            first, second = (weights.tensors[f"gates.{layer}.{i}.weight"] for i in (0, 2))
            stay, leave = second @ torch.nn.functional.gelu(first @ torch.cat([text[:-1].mean(dim=0), text[-1]]))
            seen = layer + 1 if leave + bias > stay else seen
        found.append(seen)
    return found


def test_each_sample_leaves_when_its_own_gate_says_so(model):
    inputs = prompt(model, [1, 2, 1, 1], "left")
    different = 0
    for seed in range(4):
        weights = gates(seed)
        expected = by_hand(model, inputs, weights)
        with tr.wrapped(model, tr.DyVTE(weights=weights)), torch.no_grad():
            model(**inputs)
            one, both, other, *rest = exits(model)
            assert [one, both, *([other, *rest][1:])] == [expected[0], expected[1], expected[2], expected[3]]
            assert both == other  # the pictures of a sample leave together
        different += len(set(expected)) > 1
    assert different


def test_with_gates_it_equals_the_shortened_sequence():
    key = "llava"
    model = tiny_models.build(key)
    config = model.get_decoder().config
    torch.manual_seed(3)
    module = dyvte.Gates(config.num_hidden_layers, config.hidden_size, 4)
    method = tr.DyVTE(hidden=4)
    weights = tr.Weights.made(method.header(family_of(model).offers(), {}), module)
    case = tiny_models.case(key, "mixed", model)
    with torch.no_grad():
        model(**case.inputs)  # transformers installs hooks of its own in the first forward pass
    setting = contracts.Setting(key, tr.DyVTE(weights=weights, bias=0.5), model, tiny_models.build(key), case)
    contracts.equals_the_shortened_sequence(setting)
    contracts.batch_equals_its_samples(setting)
    contracts.cache_changes_nothing(setting)
    contracts.nothing_is_left(setting)


def test_a_budget_beside_gates_is_the_latest_layer_and_a_bias_makes_them_leave_earlier(model):
    inputs, weights = prompt(model, [1, 1, 1], "left"), gates(1)
    for bias, keep, expected in ((-1e6, None, [5, 5, 5]), (-1e6, 0.4, [2, 2, 2]), (1e6, 0.4, [1, 1, 1])):
        with tr.wrapped(model, tr.DyVTE(weights=weights, bias=bias, keep=keep)), torch.no_grad():
            model(**inputs)
            assert exits(model) == expected


@pytest.mark.parametrize(("keep", "seen"), [(0.2, 1), (0.5, 2), (0.6, 3), (8, 2), (13, 4), (0.01, 1), (0.95, 5)])
def test_without_gates_a_budget_is_the_nearest_number_of_layers(model, keep, seen):
    with tr.wrapped(model, tr.DyVTE(keep=keep)) as wrapped, torch.no_grad():
        wrapped(**prompt(model, [1, 2], "left"))
        assert exits(model) == [seen] * 3
        assert tr.report(model).substitutes == (
            "dyvte: tokens leaving after the same layer for every prompt, not by gates",
        )


def test_each_sample_of_a_call_can_have_a_layer_of_its_own(model):
    with tr.wrapped(model, "dyvte"), tr.budget(model, keep=[0.2, 0.8, None]), torch.no_grad():
        model(**prompt(model, [1, 1, 1], "left"))
        assert sorted(exits(model)) == [1, 4, 5]


def test_what_a_gate_reads():
    x = torch.arange(24.0).view(2, 4, 3)
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = dyvte.gate_input(Rows(x.where(valid[..., None], torch.nan), valid, torch.zeros(2, 4, dtype=torch.long)))
    assert found[0].tolist() == [1.5, 2.5, 3.5, 6.0, 7.0, 8.0]
    assert found[1].tolist() == [12.0, 13.0, 14.0] * 2  # a single token is its own mean


def test_without_text_behind_the_picture_nothing_leaves(model):
    inputs = prompt(model, [1])
    end = int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().max()) + 1
    cut = {**inputs, "input_ids": inputs["input_ids"][:, :end], "attention_mask": inputs["attention_mask"][:, :end]}
    with tr.wrapped(model, tr.DyVTE(weights=gates(), bias=1e6)), torch.no_grad():
        model(**cut)
        assert exits(model) == [LAYERS]


@torch.no_grad()
def test_an_oracle_finds_the_first_layer_that_changes_nothing_of_the_answer(model):
    inputs = prompt(model, [1, 1, 1], "left")
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    before = model(**inputs).logits[:, -3:-1].log_softmax(-1)
    expected = []
    for b in range(3):
        own = next(
            (layer for layer in range(LAYERS - 1) if as_before(model, inputs, labels, before[b], b, layer)), LAYERS - 1
        )
        expected.append(own)
    found = tr.exit_layers(model, {**inputs, "labels": labels})
    assert found.tolist() == expected
    with pytest.raises(ValueError, match="labels"):
        tr.exit_layers(model, inputs)


def as_before(model, inputs, labels, before, b: int, layer: int) -> bool:
    with tr.wrapped(model, "dyvte", fixed_layer=layer):
        after = model(**inputs, labels=labels).logits[b, -3:-1].log_softmax(-1)
    answer = labels[b, -2:]
    losses = [-float(x[range(2), answer].mean()) for x in (before, after)]
    return before.argmax(-1).tolist() == after.argmax(-1).tolist() and losses[1] < 1.03 * losses[0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"fixed_layer": 4}, ["fixed_layer=4", "5 layers", "0 to 3"]),
        ({"fixed_layer": 1, "keep": 0.5}, ["fixed_layer=1", "keep=0.5", "allowed"]),
        ({"keep": "auto"}, ["keep='auto'", "allowed"]),
        ({"hidden": 9, "weights": gates()}, ["hidden=9", "hidden=8", "leave hidden out"]),
    ],
)
def test_what_cannot_be_is_refused(model, parameters, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        tr.wrap(model, "dyvte", **parameters)
