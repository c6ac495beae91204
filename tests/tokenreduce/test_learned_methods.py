"""Methods with weights: a file that says what it belongs to, a module that follows the model and is no part of it."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from models import llava, prompt
from random_gates import gates
from torch import nn

import tokenreduce as tr
from tokenreduce.eval.recipe import Recipe
from tokenreduce.headed_tensors import packed
from tokenreduce.learned_module import Learned


@dataclass(frozen=True, kw_only=True)
class Liked(tr.LearnedMethod, register=False):
    """Keeps what a line through the features likes best."""

    name = "liked"
    title = "a line through the features"
    stages = ("projector",)
    shaped_by = MappingProxyType({"lines": 1})
    lines: int | None = None

    def module(self, facts):
        return nn.Linear(facts.decoder_width, self.shape["lines"])

    def reduce(self, tokens):
        line = tokens.learned.part("", tokens.features)
        assert line.weight.dtype == tokens.features.dtype
        score = line(tokens.features).sum(dim=-1)
        return tr.Reduction.top(score.float(), self.budget.count(tokens.num_tokens))


@pytest.fixture
def model():
    return llava()


def trained(model, **parameters) -> tr.Weights:
    """As if: random ones."""
    method = Liked(**parameters)
    with tr.wrapped(model, method):
        facts = model.__dict__["_tokenreduce"].facts
    torch.manual_seed(5)
    return tr.Weights.made(method.header(facts, {"steps": 3, "seed": 5}), method.module(facts))


@torch.no_grad()
def test_a_file_round_trips(model, tmp_path):
    weights, inputs = trained(model, lines=2), prompt(model, [1, 2])
    with tr.wrapped(model, Liked(weights=weights, keep=5)):
        expected, kept = model(**inputs).logits, [x.tolist() for x in tr.trace(model).kept]
        assert tr.report(model).substitutes == ()
    saved = weights.save(tmp_path / "liked.safetensors")
    read = tr.Weights.of(tmp_path / "liked.safetensors")
    assert (read, read.sha256, read.header) == (saved, weights.sha256, weights.header)
    assert read.header.training == {"steps": 3, "seed": 5}
    for given in (str(tmp_path / "liked.safetensors"), read, dataclasses.asdict(read)):
        method = Liked(weights=given, keep=5)
        assert method.lines == 2  # as the file says
        with tr.wrapped(model, method):
            assert torch.equal(model(**inputs).logits, expected)
    with tr.wrapped(model, Liked(keep=5)):  # untrained: others, and it is said
        model(**inputs)
        assert [x.tolist() for x in tr.trace(model).kept] != kept
        assert "weights that nobody trained" in str(tr.report(model).substitutes)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        weights.save(tmp_path / "liked.safetensors")


@torch.no_grad()
def test_the_module_follows_the_model_and_is_no_part_of_it(model):
    weights, names = trained(model), list(model.state_dict())
    method = Liked(weights=weights, keep=5)
    tr.wrap(model, method)
    (found,) = model.__dict__["_tokenreduce"].hooks.pipeline.learned.values()
    assert list(model.state_dict()) == names
    assert not {id(p) for p in model.parameters()} & {id(p) for p in found.module.parameters()}
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
        model.to(dtype)
        inputs = prompt(model, [1])
        model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)})  # reduce looks at the dtype
    like = torch.empty(1, device="meta", dtype=torch.float16)
    assert found.part("", like).weight.device.type == "meta"
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}  # what is read is never rounded
    with tr.budget(model, keep=3):  # another budget, the same module
        assert model.__dict__["_tokenreduce"].hooks.pipeline.learned[0] is found
    gone = weakref.ref(found)
    del found
    tr.unwrap(model)
    gc.collect()
    assert gone() is None


def test_submodules_are_placed_one_by_one():
    learned = Learned(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    assert learned.part("a", torch.empty(1, device="meta")).weight.device.type == "meta"
    assert learned.part("b", torch.empty(1)).weight.device.type == "cpu"
    assert learned.part("b", torch.empty(1)) is learned.part("b", torch.empty(1))


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"model": "qwen2_5_vl"}, "model 'qwen2_5_vl', not 'llava'"),
        ({"decoder_layers": 6}, "decoder layers 6, not 5"),
        ({"tokens": 9}, "tokens 9, not 16"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(model, base, words):
    with pytest.raises(ValueError, match=f"another model than this llava model: {words}. Give weights"):
        tr.wrap(model, "dyvte", weights=gates(**base))
    assert not tr.is_wrapped(model)


def test_weights_that_do_not_fit_are_refused_by_name(model, tmp_path):
    weights = trained(model)
    with pytest.raises(ValueError, match="the weights are of method 'dyvte'"):
        tr.wrap(model, Liked(weights=gates()))
    with pytest.raises(ValueError, match="lines=3, but the weights were trained with lines=1"):
        tr.wrap(model, Liked(weights=weights, lines=3))
    older = tr.Weights.made(dataclasses.replace(weights.header, version=0), nn.Linear(32, 1))
    with pytest.raises(ValueError, match="of version 0, not 1"):
        tr.wrap(model, Liked(weights=older))
    other = tr.Weights.made(weights.header, nn.Linear(32, 2, bias=False))
    with pytest.raises(ValueError, match=r"bias missing, not \(1,\); weight \(2, 32\), not \(1, 32\)"):
        tr.wrap(model, Liked(weights=other))
    assert not tr.is_wrapped(model)
    thresholds = tmp_path / "thresholds.safetensors"
    tr.Calibration((0.9,)).save(thresholds)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(1)}, pickled)
    for path, words in (
        (thresholds, "of 'tokenreduce calibration', not of 'tokenreduce weights'"),
        (pickled, "holds no weights of a method"),
        (tmp_path / "none.safetensors", "is no file"),
    ):
        with pytest.raises(ValueError, match=words):
            Liked(weights=path)
    with pytest.raises(ValueError, match="does not hold thresholds"):
        tr.DyMU(calibration=gates().save(tmp_path / "gates.safetensors").path)


def test_a_recipe_says_which_file_and_notices_another(tmp_path):
    path = tmp_path / "gates.safetensors"
    first = gates(0).save(path)
    recipe = Recipe.of("dyvte", parameters={"weights": str(path)})
    data = json.loads(json.dumps(recipe.as_dict()))
    assert data["methods"][0]["weights"] == {"path": str(path), "sha256": first.sha256}
    assert Recipe.from_dict(data) == recipe
    gates(1).save(path, overwrite=True)
    with pytest.raises(ValueError, match="changed since"):
        Recipe.from_dict(data)
    never = Recipe.of("dyvte", parameters={"weights": gates()})
    with pytest.raises(ValueError, match="never saved"):
        Recipe.from_dict(never.as_dict())


def test_equal_content_is_an_equal_file():
    content = {"b": torch.arange(3.0), "a": torch.ones(2)}
    assert packed("kind", {"x": 1, "y": 2}, content) == packed(
        "kind", {"y": 2, "x": 1}, dict(reversed(content.items()))
    )
