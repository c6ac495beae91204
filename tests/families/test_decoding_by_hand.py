"""Stage ``decode`` where a program holds the cache: single tokens, second turns, crops, threads, and what is refused."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import decode_oracle
import pytest
import reduced
import torch
from decoding_steps import KEEP, STEPS, apart, oracle, some, written
from models import TRANSFORMERS
from probe_methods import ReadsSome
from transformers import DynamicCache

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of


def step(model, cache, inputs: dict, token: int, length: int):
    """Logits (V,) behind one more ``token``, the prompt with what was written being ``length`` columns long."""
    given = {"input_ids": torch.tensor([[token]]), "attention_mask": torch.ones(1, length + 1, dtype=torch.long)}
    return model(**given, past_key_values=cache, use_cache=True).logits[0, -1]


@torch.no_grad()
def prompted(model, inputs: dict):
    cache = DynamicCache(config=decoder_of(model).config)
    model(**inputs, past_key_values=cache)
    return cache


@torch.no_grad()
def test_single_tokens_passed_by_hand_choose_and_several_at_once_read_everything():
    model = reduced.model("llava")
    case = zoo.case("llava", "single", model)
    length = case.inputs["input_ids"].shape[1]
    tokens = torch.tensor([30, 31, 32])
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, case.inputs)
        by_hand = [step(model, cache, case.inputs, int(t), length + i) for i, t in enumerate(tokens)]
        trace = tr.trace(model)
        at_once = prompted(model, case.inputs)
        mask = torch.ones(1, length + 3, dtype=torch.long)
        whole = model(input_ids=tokens[None], attention_mask=mask, past_key_values=at_once).logits[0]
    expected = oracle("llava", case, trace, 0, torch.cat([tokens, torch.tensor([1])]))[1:]
    assert apart(torch.stack(by_hand), expected) < 1e-5
    bare = prompted(model, case.inputs)
    assert apart(whole, model(input_ids=tokens[None], attention_mask=mask, past_key_values=bare).logits[0]) < 1e-5
    assert cache.layers[-1].keys.shape[2] == length + 3


def test_a_second_turn_begins_anew():
    """What was noted of the first answer is of another question; the second one reads pictures of both turns."""
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length, question = inputs["input_ids"].shape[1], torch.tensor([[30, 31, 32, 33]])
    cache = DynamicCache(config=decoder_of(model).config)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
        both = zoo.follow("llava", inputs, torch.cat([first[:, length:], question], dim=1))
        text = {name: both[name] for name in ("input_ids", "attention_mask")}
        tokens, logits = written(model, text, past_key_values=cache)
        read = tr.report(model).steps_read.read
        (picture,) = [image.columns for image in tr.trace(model).images]
    assert len(read) == 2 + STEPS - 1
    bare = reduced.model("llava", "eager")
    held = DynamicCache(config=decoder_of(bare).config)
    with decode_oracle.reading(bare, 2, [picture], some()):
        bare.generate(**inputs, past_key_values=held, max_new_tokens=3, do_sample=False)
    with decode_oracle.reading(bare, 2, [picture], some()):
        expected = decode_oracle.fed(bare, {**text, "past_key_values": held}, tokens[0])
    assert apart(logits[0], expected) < 1e-5


@torch.no_grad()
def test_a_cropped_cache_forgets_what_was_noted():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length = inputs["input_ids"].shape[1]
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, inputs)
        fresh = step(model, cache, inputs, 40, length)
        for token in (41, 42):
            step(model, cache, inputs, token, length + token - 40)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        assert torch.equal(step(model, cache, inputs, 40, length), fresh)
        for layer in cache.layers:  # into the picture
            layer.keys, layer.values = layer.keys[:, :, :10], layer.values[:, :, :10]
        cut = step(model, cache, inputs, 40, 10)
    bare = prompted(model, inputs)
    for layer in bare.layers:
        layer.keys, layer.values = layer.keys[:, :, :10], layer.values[:, :, :10]
    assert torch.equal(cut, step(model, bare, inputs, 40, 10))


@torch.no_grad()
def test_unwrapped_in_the_middle_the_model_reads_everything_again():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    length = inputs["input_ids"].shape[1]
    plain = prompted(model, inputs)
    first, second = (step(model, plain, inputs, 40 + i, length + i) for i in range(2))
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        cache = prompted(model, inputs)
    assert torch.equal(step(model, cache, inputs, 40, length), first)
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        assert apart(step(copy.deepcopy(model), copy.deepcopy(cache), inputs, 41, length + 1), second) > 1e-3
        with tr.budget(model, 1.0):
            assert torch.equal(step(model, cache, inputs, 41, length + 1), second)


def test_threads_note_by_themselves():
    model = reduced.model("llava")
    case = zoo.case("llava", "equal", model)
    samples = [zoo.alone("llava", case, b) for b in range(2)] * 2
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        expected = [written(model, sample)[1] for sample in samples]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda sample: written(model, sample)[1], samples))
    assert all(map(torch.equal, found, expected))


def test_a_prompt_in_chunks():
    if TRANSFORMERS < (5, 23):
        pytest.skip("transformers before 5.23 does not run pictures in chunks rightly")
    model = reduced.model("qwen2_5_vl")
    case = zoo.case("qwen2_5_vl", "single", model)
    size = int(case.visuals[0][0].columns[-1]) + 2
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        whole = written(model, case.inputs)
        assert apart(written(model, case.inputs, prefill_chunk_size=size)[1], whole[1]) < 1e-5
        assert apart(whole[1][0], oracle("qwen2_5_vl", case, tr.trace(model), 0, whole[0][0])) < 1e-5


def test_what_cannot_be_chosen_token_by_token_is_refused():
    model = reduced.model("llava")
    inputs, text = (zoo.inputs("llava", kind, model) for kind in ("single", "text"))
    repeated = zoo.follow("llava", inputs, torch.tensor([[30, 31, 32, 30, 31, 32, 30, 31]]))
    with tr.wrapped(model, ReadsSome(keep=KEEP)):
        with pytest.raises(ValueError, match=r"reads_some.*token by token.*prompt_lookup_num_tokens"):
            model.generate(**repeated, max_new_tokens=4, do_sample=False, prompt_lookup_num_tokens=3)
        with pytest.raises(ValueError, match=r"use_cache=False.*reads_some"):
            model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
        for how in ({"use_cache": False}, {"prompt_lookup_num_tokens": 3}):  # no pictures, nothing to choose
            one = {name: x[:1] for name, x in text.items()}
            model.generate(**one, max_new_tokens=4, do_sample=False, **how)
