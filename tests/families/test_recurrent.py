"""Language models of which some layers are recurrent, as in the released order: three of them, then one with attention."""

from __future__ import annotations

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

KEY = "qwen3_5"
METHODS = {
    "door": (tr.HiPrune(keep=0.5),),
    "before a recurrent layer": (tr.FastV(layer=2, keep=0.5),),
    "both, renumbered": (tr.HiPrune(keep=0.6, positions="renumber"), tr.FastV(layer=4, keep=0.5, positions="renumber")),
}


@pytest.fixture(scope="module")
def model():
    return zoo.build(KEY, recurrent=(0, 2, 4))


@pytest.mark.parametrize("kind", ["mixed", "videos"])
@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_logits_and_tokens(model, methods, kind):
    inputs = zoo.inputs(KEY, kind, model)
    positions = methods[0].positions
    out, trace = reduced.forward(model, inputs, *methods)
    reduced.same_logits(model, inputs, out.logits, trace, positions)
    tokens, trace = reduced.write(model, inputs, *methods)
    reduced.same_tokens(model, inputs, tokens, trace, positions)


def test_a_recurrent_layer_cannot_be_listened_to(model):
    with pytest.raises(ValueError, match=r"layer 0 .* is recurrent .* allowed: layers 1, 3"):
        tr.wrap(model, "fastv", layer=1)
    assert not tr.is_wrapped(model)


def test_the_cache_of_a_recurrent_layer_cannot_be_trimmed(model):
    with pytest.raises(ValueError, match=r"stage 'cache'.*projector, llm"):
        tr.wrap(model, "mustdrop", layers=(1,), keep=0.5, trim_cache=True)


def test_cost_counts_no_keys_in_recurrent_layers(model):
    inputs = zoo.inputs(KEY, "single", model)
    with tr.wrapped(model, *METHODS["door"]), torch.no_grad():
        cache = model(**inputs).past_key_values
        report = tr.report(model)
    held = [layer for layer in cache.layers if hasattr(layer, "keys")]
    assert len(held) == 2
    assert report.kv_bytes == sum(x.numel() * 4 for layer in held for x in (layer.keys, layer.values))
    assert (
        report.kv_bytes_unreduced * (len(cache.layers[1].keys[0, 0])) == report.kv_bytes * inputs["input_ids"].shape[1]
    )
