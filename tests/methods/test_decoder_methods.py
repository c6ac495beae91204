"""Methods inside the language model in every way a model is called: batches, beams, turns, caches, training, packed rows."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from models import VOCAB, llava, prompt
from random_gates import gates
from transformers import DynamicCache, StaticCache

import tokenreduce as tr

TOLERANCE = 3e-5
METHODS = {
    "sparsevlm": lambda: tr.SparseVLM(keep=0.6, layers=(1, 2)),
    "sparsevlm-plus": lambda: tr.SparseVLM(version=2, counts=(9, 5), layers=(1, 2)),
    "sparsevlm-rank": lambda: tr.SparseVLM(keep="auto", rank=(1.5, 1), layers=(1, 3)),
    "pyramiddrop": lambda: tr.PyramidDrop(layers=(1, 3), ratios=(0.6, 0.25)),
    "pyramiddrop-renumbered": lambda: tr.PyramidDrop(layers=(2, 4), ratios=(0.5, 0.2), positions="renumber"),
    "dart": lambda: tr.DART(keep=7),
    "promptdistill": lambda: tr.PromptDistill(keep=4, layers=(0, 2), truncate=-1),
    "promptdistill-first": lambda: tr.PromptDistill(keep=4, layers=(1, 3), truncate=1, pool="grid3"),
    "aim": lambda: tr.AIM(start=1, slope=0.4),
    "aim-keys": lambda: tr.AIM(keep=0.4, metric="keys"),
    "id_selection": lambda: tr.IDSelection(keep=5, score="unified"),
    "dyvte": lambda: tr.DyVTE(fixed_layer=1),
    "dyvte-gates": lambda: tr.DyVTE(weights=gates()),
}
TRIM = ("promptdistill", "promptdistill-first")  # the cache after the prompt
#: what is attended to is averaged over the text of a row
ONE_DOCUMENT = ("sparsevlm", "sparsevlm-plus", "sparsevlm-rank", "aim", "aim-keys")
SHORT = ("sparsevlm", "pyramiddrop", "dart", "promptdistill", "aim", "id_selection", "dyvte-gates")
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in METHODS]
)


@pytest.fixture(scope="module")
def model():
    return llava()


def alone(inputs: dict, b: int) -> dict:
    """Sample ``b`` of ``inputs`` of one picture each, without padding."""
    real = inputs["attention_mask"][b].bool()
    return {
        "input_ids": inputs["input_ids"][b : b + 1, real],
        "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
        "pixel_values": inputs["pixel_values"][b : b + 1],
    }


def kept(model) -> list:
    """Of each picture, what is left in every layer."""
    return [[image.kept(layer).tolist() for layer in range(5)] for image in tr.trace(model).images]


@every_method
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_samples(model, name, side):
    inputs = prompt(model, [1, 1, 1], side)
    with tr.wrapped(model, METHODS[name]()), torch.no_grad():
        together, traced = model(**inputs).logits, kept(model)
        for b in range(3):
            own = model(**alone(inputs, b)).logits[0]
            assert kept(model) == [traced[b]]
            torch.testing.assert_close(
                together[b][inputs["attention_mask"][b].bool()][-3:], own[-3:], atol=TOLERANCE, rtol=0
            )
        assert any(len(layers[-1]) < 16 for layers in traced)


@every_method
def test_pictures_of_a_sample_decide_in_a_batch_as_alone(model, name):
    inputs = prompt(model, [2, 0, 3], "left")
    with tr.wrapped(model, METHODS[name]()), torch.no_grad():
        together, traced = model(**inputs).logits[:, -1], kept(model)
        for b, pictures in ((0, slice(0, 2)), (2, slice(2, 5))):
            one = {**alone(inputs, b), "pixel_values": inputs["pixel_values"][pictures]}
            torch.testing.assert_close(model(**one).logits[0, -1], together[b], atol=TOLERANCE, rtol=0)
            assert kept(model) == traced[pictures]


@every_method
def test_beams_of_a_batch_are_those_of_its_samples(model, name):
    inputs = prompt(model, [1, 1], "left")
    ways = {
        "max_new_tokens": 4,
        "do_sample": False,
        "num_beams": 3,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    with tr.wrapped(model, METHODS[name]()):
        together = model.generate(**inputs, **ways)
        for b in range(2):
            one = model.generate(**alone(inputs, b), **ways)
            assert one.sequences[0, -4:].tolist() == together.sequences[b, -4:].tolist()
            torch.testing.assert_close(one.sequences_scores[0], together.sequences_scores[b], atol=TOLERANCE, rtol=0)


@every_method
def test_without_a_cache_the_answer_is_the_same(model, name):
    inputs, ways = prompt(model, [1, 1], "left"), {"max_new_tokens": 5, "do_sample": False}
    refused = pytest.raises(ValueError, match=r"use_cache=False, but .* truncate=0") if name in TRIM else nullcontext()
    with tr.wrapped(model, METHODS[name]()):
        cached = model.generate(**inputs, **ways)
        with refused:
            assert torch.equal(model.generate(**inputs, **ways, use_cache=False), cached)


@every_method
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_second_turn_at_once_is_the_same_token_by_token(model, name, static):
    inputs = prompt(model, [1])
    length, config = inputs["input_ids"].shape[1], model.get_decoder().config
    more = torch.randint(4, VOCAB, (1, 5), generator=torch.Generator().manual_seed(1))
    refused = pytest.raises(ValueError, match="StaticLayer; allowed") if static and name in TRIM else nullcontext()
    with refused, tr.wrapped(model, METHODS[name]()), torch.no_grad():
        found = []
        for pieces in ([more], more.split(1, dim=1)):
            cache = StaticCache(config=config, max_cache_len=length + 9) if static else DynamicCache(config=config)
            model(**inputs, past_key_values=cache, use_cache=True)
            rows = []
            for own in pieces:
                seen = length + sum(row.shape[1] for row in rows) + own.shape[1]
                rows.append(model(input_ids=own, attention_mask=torch.ones(1, seen), past_key_values=cache).logits)
            found.append(torch.cat(rows, dim=1))
        torch.testing.assert_close(*found, atol=TOLERANCE, rtol=0)


@every_method
def test_a_static_cache_and_an_assistant_change_nothing(model, name):
    inputs = prompt(model, [1])
    ways = {"max_new_tokens": 6, "do_sample": False}
    helper = copy.deepcopy(model)
    with torch.no_grad():
        helper.lm_head.weight.add_(
            0.1 * torch.randn(helper.lm_head.weight.shape, generator=torch.Generator().manual_seed(2))
        )
    with tr.wrapped(model, METHODS[name]()):
        expected, traced = model.generate(**inputs, **ways), kept(model)
        others = [{"cache_implementation": "static"}, {"assistant_model": helper}, {"prompt_lookup_num_tokens": 2}]
        for more in others[name in TRIM :]:
            assert torch.equal(model.generate(**inputs, **ways, **more), expected), more
            assert kept(model) == traced, more


@every_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpoints(name, reentrant):
    model = llava().train()
    inputs = prompt(model, [1, 1], "left")
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    found = []
    with tr.wrapped(model, METHODS[name]()):
        for checkpoints in (False, True):
            if checkpoints:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
                model.enable_input_require_grads()
            model.zero_grad()
            loss = model(**inputs, labels=labels, use_cache=False).loss
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in model.get_decoder().parameters())])
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)


@every_method
def test_packed_documents_are_those_alone_or_refused_in_words(model, name):
    inputs = prompt(model, [1, 1], "left")
    own = [alone(inputs, b) for b in range(2)]
    row = torch.cat([one["input_ids"] for one in own], dim=1)
    places = torch.cat([torch.arange(one["input_ids"].shape[1]) for one in own])[None]
    packed = {"input_ids": row, "position_ids": places, "pixel_values": inputs["pixel_values"], "use_cache": False}
    if name in ONE_DOCUMENT:
        with (
            tr.wrapped(model, METHODS[name]()),
            pytest.raises(ValueError, match=r"packed rows .* give each document a row"),
        ):
            model(**packed)
        return
    with tr.wrapped(model, METHODS[name]()), torch.no_grad():
        logits, traced, start = model(**packed).logits[0], kept(model), 0
        for b, one in enumerate(own):
            start += one["input_ids"].shape[1]
            expected = model(**one, use_cache=False).logits[0, -1]
            assert kept(model) == [traced[b]]
            torch.testing.assert_close(logits[start - 1], expected, atol=TOLERANCE, rtol=0)
