"""Examples of methods that learn: they train, and what they save is served."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import demo

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "learned"


@pytest.fixture
def example(monkeypatch, request):
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def asked(count):
    model, processor = demo.load()
    questions = demo.questions("test", count, per_image=1)
    text = [demo.prompt(q.question) for q in questions]
    return model, processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True)


@pytest.mark.parametrize(
    ("example", "name", "steps"),
    [("token_slimming", "TokenSlimming", 60), ("rewarded_selector", "RewardedSelector", 60)],
    indirect=["example"],
)
def test_an_example_learns_and_is_served(example, name, steps, tmp_path):
    saved = example.trained(steps=steps).weights.save(tmp_path / "learned.safetensors")
    model, inputs = asked(24)
    off = {}
    for weights in (None, saved.path):
        with tr.wrapped(model, getattr(example, name)(keep=9, weights=weights)), torch.no_grad():
            own, whole = (model(**inputs, **more).logits[:, -1].log_softmax(-1) for more in ({}, {"tr_keep": None}))
            off[weights] = torch.nn.functional.kl_div(own, whole, reduction="batchmean", log_target=True)
            model(**inputs)
            assert {len(image.kept(0)) for image in tr.trace(model).images} == {9}
    assert off[saved.path] < 0.75 * off[None]


@pytest.mark.parametrize("example", ["token_slimming"], indirect=True)
def test_token_slimming_has_no_more_rows_than_slots(example):
    model, inputs = asked(1)
    with tr.wrapped(model, example.TokenSlimming(keep=20)), pytest.raises(ValueError, match="20 rows of 16 slots"):
        model(**inputs)


@pytest.mark.parametrize("example", ["rewarded_selector"], indirect=True)
def test_a_choice_is_as_likely_as_its_draws_one_after_the_other(example):
    score = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    share, order = score[0].softmax(0), torch.tensor([[2, 0, 3, 1]])
    first, second = share[2], share[0] / (1 - share[2])
    torch.testing.assert_close(example.likelihood(score, order, 2), (first * second).log()[None])
