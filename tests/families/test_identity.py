"""Contracts 1 and 6 on every family: a full budget changes no bit, and what came on comes off."""

from __future__ import annotations

import copy

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.tiny_models import FAMILIES as ZOO

FULL = (tr.HiPrune(keep=1.0), tr.FastV(keep=1.0, layer=1), tr.FastV(keep=1.0, layer=3, query="all"))
SOME = (tr.HiPrune(keep=0.5), tr.FastV(keep=0.5, layer=1))


def state(model) -> dict:
    """Hooks and attributes of every module, and the parameters by name."""
    modules = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__), id(m.__dict__.get("config")))
        for name, m in model.named_modules()
    }
    return {"modules": modules, "parameters": {name: p.data_ptr() for name, p in model.state_dict().items()}}


@torch.no_grad()
def run(model, inputs: dict) -> torch.Tensor:
    return model(**inputs).logits


def moving(key: str) -> str:
    """The kind of prompt that exercises most of a family."""
    return "videos" if "videos" in zoo.kinds(key) else "mixed"


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_full_budget_changes_no_bit(key, attn):
    model = reduced.model(key, attn)
    for kind in zoo.kinds(key) if attn == "sdpa" else ("mixed",):
        inputs = zoo.inputs(key, kind, model)
        expected = run(model, inputs)
        with tr.wrapped(model, *FULL):
            assert torch.equal(run(model, inputs), expected)
            assert tr.report(model).tokens_kept == tr.report(model).tokens_in
            assert tr.report(model).flops == tr.report(model).flops_unreduced
        if kind == moving(key):
            tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            assert [row[-3:] for row in tokens.tolist()] == reduced.write(model, inputs, *FULL, steps=3)[0]


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_text_alone_changes_no_bit(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "text", model)
    expected = run(model, inputs)
    with tr.wrapped(model, *SOME):
        assert torch.equal(run(model, inputs), expected)
        assert tr.report(model).tokens_in == [[], []]


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_nothing_stays_behind(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, moving(key), model)
    plain = run(model, inputs)
    before = state(model)
    with tr.wrapped(model, *SOME):
        assert state(model) != before
        assert not torch.equal(run(model, inputs), plain)
        model.generate(**inputs, max_new_tokens=2)
    assert state(model) == before
    assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_an_exception_on_the_way_leaves_nothing_behind(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)

    def fail(*args):
        raise RuntimeError("boom")

    with tr.wrapped(model, *SOME):
        expected = run(model, inputs)
        for place in (model.base_model.get_encoder(modality="image"), decoder_of(model).layers[2]):
            handle = place.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="boom"):
                run(model, inputs)
            handle.remove()
            assert torch.equal(run(model, inputs), expected)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_two_models_and_a_copy_are_three(key):
    one, other = zoo.build(key), zoo.build(key, seed=1)
    inputs = zoo.inputs(key, moving(key), one)
    plain, others = run(one, inputs), run(other, inputs)
    tr.wrap(one, *SOME)
    short = run(one, inputs)
    assert torch.equal(run(other, inputs), others)
    twin = copy.deepcopy(one)
    tr.unwrap(one)
    assert torch.equal(run(one, inputs), plain)
    with torch.no_grad():
        one.lm_head.weight.zero_()
    assert torch.equal(run(twin, inputs), short)
    tr.wrap(other, tr.Uniform(keep=2))
    run(other, inputs)
    assert {n for row in tr.report(other).tokens_kept for n in row} == {2}
    assert torch.equal(run(twin, inputs), short)
    tr.unwrap(twin)
    assert torch.equal(run(twin, inputs), plain)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_saved_while_wrapped_it_is_the_plain_model(key, tmp_path):
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    plain = run(model, inputs)
    with tr.wrapped(model, *SOME):
        model.save_pretrained(tmp_path)
    assert "tokenreduce" not in (tmp_path / "config.json").read_text()
    loaded = ZOO[key].model.from_pretrained(tmp_path).eval()
    loaded.set_attn_implementation(getattr(ZOO[key], "attention", {}).get("sdpa", "sdpa"))
    assert not tr.is_wrapped(loaded)
    assert torch.equal(run(loaded, inputs), plain)
