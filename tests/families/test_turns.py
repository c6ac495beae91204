"""Contract 5 on every family: a second turn on the shortened cache is the long prompt, as the oracle runs it."""

from __future__ import annotations

import pytest
import reduced
import torch
import zoo_oracle
from probe_methods import MergeAt, Ragged
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of

METHODS = {
    "door": lambda: (tr.HiPrune(keep=0.4),),
    "merge": lambda: (MergeAt(),),
    "both": lambda: (tr.HiPrune(keep=0.6), tr.FastV(keep=0.5, layer=1)),
    "renumbered": lambda: (Ragged(positions="renumber"),),
}
QWEN = [key for key in reduced.FAMILIES if key.startswith("qwen")]
#: image tokens of a later turn attend both ways in a cached chunk; the bare models' own masks do not allow for that
BOTH_WAYS = ("gemma3", "paligemma", "paligemma2")


def of_text(inputs: dict) -> dict:
    """What is passed in a turn without pictures."""
    return {name: x for name, x in inputs.items() if name.endswith("_ids") or name == "attention_mask"}


def turns(key: str, kind: str, methods: tuple, positions: str) -> None:
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    batch, length = inputs["input_ids"].shape
    question = torch.tensor([30, 31, 32, 33]).expand(batch, -1)
    cache = DynamicCache(config=decoder_of(model).config)
    with tr.wrapped(model, *methods):
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
        trace = tr.trace(model)
        both = zoo.follow(key, inputs, torch.cat([first[:, length:], question], dim=1))
        second = model.generate(**of_text(both), past_key_values=cache, max_new_tokens=3, do_sample=False)
        assert tr.trace(model) is trace  # text that continues a prompt leaves its trace alone
    what = reduced.told(trace, inputs["attention_mask"])
    assert first[:, length:].tolist() == zoo_oracle.greedy(model, inputs, 3, **what, positions=positions)
    longer = reduced.grown(what, length, both["input_ids"].shape[1] - length)
    assert second[:, -3:].tolist() == zoo_oracle.greedy(model, both, 3, **longer, positions=positions)
    assert cache.layers[-1].keys.shape[-2] < both["input_ids"].shape[1]


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_second_turn_of_generate(key, methods):
    turns(key, "mixed", METHODS[methods](), "renumber" if methods == "renumbered" else "keep")


@pytest.mark.parametrize("key", [key for key in reduced.VIDEO if key != "qwen2_5_vl"])
def test_a_second_turn_after_a_video(key):
    """Not in Qwen2.5-VL: there the bare model goes on from another position in its second turn than in its first."""
    turns(key, "videos" if "videos" in zoo.kinds(key) else "video", METHODS["both"](), "keep")


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_second_turn_of_forward(key, methods):
    model = reduced.model(key)
    kind = "single" if key in QWEN else "mixed"  # Qwen takes no mask of the whole conversation in a later forward pass
    inputs = zoo.inputs(key, kind, model)
    batch, length = inputs["input_ids"].shape
    both = zoo.follow(key, inputs, torch.tensor([30, 31, 32, 33]).expand(batch, -1))
    new = {name: x if name == "attention_mask" else x[:, length:] for name, x in of_text(both).items()}
    if key in QWEN:
        del new["attention_mask"]
    cache = DynamicCache(config=decoder_of(model).config)
    with tr.wrapped(model, *METHODS[methods]()), torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=True)
        trace = tr.trace(model)
        logits = model(**new, past_key_values=cache).logits
    longer = reduced.grown(reduced.told(trace, inputs["attention_mask"]), length, 4)
    positions = "renumber" if methods == "renumbered" else "keep"
    for row, expected in zip(logits, zoo_oracle.logits(model, both, **longer, positions=positions), strict=True):
        torch.testing.assert_close(row, expected[-4:], atol=reduced.TOLERANCE, rtol=0)


@pytest.mark.parametrize("methods", ["door", "merge"])
@pytest.mark.parametrize("key", [key for key in reduced.FAMILIES if key not in (*QWEN, *BOTH_WAYS)])
def test_a_second_picture_in_a_second_turn(key, methods):
    """Both are reduced as they would be in one prompt. (The bare Qwen models give the picture the positions of text.)"""
    model = reduced.model(key)
    one, two = (zoo.inputs(key, "single", model, seed=seed) for seed in (0, 3))
    both = {}
    for name, x in one.items():
        by_column = x.shape == one["input_ids"].shape or key in ("smolvlm", "idefics3")
        both[name] = torch.cat([x, two[name]], dim=1 if by_column and name != "image_sizes" else 0)
    cache = DynamicCache(config=decoder_of(model).config)
    length = one["input_ids"].shape[1]
    with tr.wrapped(model, *METHODS[methods]()), torch.no_grad():
        model(**one, past_key_values=cache, use_cache=True)
        before = tr.trace(model).kept[0]
        out = model(**{**two, "attention_mask": both["attention_mask"]}, past_key_values=cache).logits
        after = tr.trace(model).kept[0]
    whole, trace = reduced.forward(model, both, *METHODS[methods]())
    assert torch.equal(torch.cat([before, after]), trace.kept[0])
    reduced.same_logits(model, both, whole.logits, trace)
    torch.testing.assert_close(out, whole.logits[:, length:], atol=reduced.TOLERANCE, rtol=0)
