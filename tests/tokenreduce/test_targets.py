"""A wish in place of a budget: what is found meets it, the next larger budget does not, and the report says so."""

from __future__ import annotations

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.targets import _Asked, _largest


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture(scope="module")
def inputs(model):
    return prompt(model, [1, 2], pad="left")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def costs(model, inputs, method, keep):
    with tr.wrapped(model, method, keep=keep), torch.no_grad():
        model(**inputs)
        return tr.report(model)


@pytest.mark.parametrize("method", ["hiprune", "fastv", "pyramiddrop", "random"])
@pytest.mark.parametrize(("wish", "value"), [("flops", 0.7), ("speedup", 1.2)])
def test_the_budget_is_the_largest_that_meets_the_wish(model, inputs, method, wish, value):
    keep = tr.budget_for(model, inputs, method, **{wish: value})

    def met(keep):
        found = costs(model, inputs, method, keep)
        return found.speedup >= value if wish == "speedup" else found.flops <= value * found.flops_unreduced

    k = round(keep * 16)
    assert keep == k / 16 < 1
    assert met(keep)
    assert not met((k + 1) / 16)
    assert not tr.is_wrapped(model)


def test_a_wish_that_everything_meets_keeps_everything(model, inputs):
    assert tr.budget_for(model, inputs, "hiprune", flops=1.0) == 1.0
    assert tr.budget_for(model, inputs, "hiprune", prefill_ms=1e9) == 1.0
    assert tr.budget_for(model, inputs, "hiprune", prefill_ms=1e9, measured=True) == 1.0


def test_a_wish_out_of_reach_is_answered_with_what_can_be_had(model, inputs):
    with pytest.raises(ValueError, match=r"speedup=50 cannot be had with 'hiprune'.*1 of 16 tokens give speedup=\d"):
        tr.budget_for(model, inputs, "hiprune", speedup=50)
    with pytest.raises(ValueError, match=r"flops=0.01 cannot be had with 'fastv'.*give flops=0\.\d"):
        tr.budget_for(model, inputs, "fastv", flops=0.01)
    assert not tr.is_wrapped(model)


def test_wrap_takes_a_wish_and_the_report_says_what_came_of_it(model, inputs):
    with tr.wrapped(model, "hiprune", flops=0.7, inputs=inputs), torch.no_grad():
        model(**inputs)
        report = tr.report(model)
    assert report.tokens_kept[0][0] == round(tr.budget_for(model, inputs, "hiprune", flops=0.7) * 16)
    assert "asked for" in str(report)
    assert f"flops=0.7; {report.speedup:.2f} times fewer FLOPs in all" in str(report)
    assert report.as_dict()["target"] == "flops=0.7"
    assert "asked for" not in str(costs(model, inputs, "hiprune", 0.5))


def test_a_tower_by_itself_has_budgets_for_wishes_too():
    timm = pytest.importorskip("timm")
    tower = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3).eval()
    keep = tr.budget_for(tower, torch.rand(1, 3, 64, 64), "random", flops=0.5)
    with tr.wrapped(tower, "random", keep=keep), torch.no_grad():
        tower(torch.rand(1, 3, 64, 64))
        found = tr.report(tower)
    assert found.flops <= 0.5 * found.flops_unreduced


def test_the_clock_decides_where_it_is_asked_to(model, inputs, monkeypatch):
    monkeypatch.setattr(_Asked, "clocked", lambda self, target, k: 8.5 / k)
    assert tr.budget_for(model, inputs, "hiprune", speedup=2.0, measured=True) == 0.5


@pytest.mark.parametrize("cost", [lambda k: k, lambda k: k * k, lambda k: 900 + k, lambda k: k**0.2])
@pytest.mark.parametrize("answer", [1, 2, 300, 575, 576])
def test_the_search_is_exact_and_short(cost, answer):
    asked = []

    def margin(k):
        asked.append(k)
        return (cost(answer) + 1e-9) / cost(k)

    assert _largest(margin, 576) == answer
    assert len(asked) <= 22
    assert _largest(lambda k: 0.5, 576) is None


@pytest.mark.parametrize(
    ("wishes", "error", "words"),
    [
        ({"speedup": 2.0}, TypeError, "inputs=processor(...)"),
        ({"speedup": 2.0, "flops": 0.5, "inputs": {}}, TypeError, "speedup=2.0 and flops=0.5"),
        ({"flops": 1.5, "inputs": {}}, ValueError, "in (0, 1]"),
        ({"flops": 0, "inputs": {}}, ValueError, "in (0, 1]"),
        ({"speedup": 0.5, "inputs": {}}, ValueError, "at least 1"),
        ({"speedup": "2x", "inputs": {}}, TypeError, "is a str"),
        ({"prefill_ms": -1, "inputs": {}}, ValueError, "above 0"),
        ({"flops": 0.5, "keep": 0.5, "inputs": {}}, TypeError, "give one of them"),
        ({"flops": 0.5, "measured": True, "inputs": {}}, TypeError, "speedup or prefill_ms"),
        ({"measured": True}, TypeError, "nothing is asked for"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_told(model, wishes, error, words):
    with pytest.raises(error) as caught:
        tr.wrap(model, "hiprune", **wishes)
    assert words in str(caught.value)
    assert not tr.is_wrapped(model)


def test_several_methods_and_text_alone_are_told(model, inputs):
    with pytest.raises(TypeError, match="2 methods"):
        tr.wrap(model, tr.FasterVLM(), tr.FastV(), flops=0.5, inputs=inputs)
    with pytest.raises(ValueError, match="hold no picture"):
        tr.budget_for(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, "hiprune", flops=0.5)
    with tr.wrapped(model, "hiprune"), pytest.raises(ValueError, match=r"tr\.unwrap"):
        tr.budget_for(model, inputs, "hiprune", flops=0.5)
