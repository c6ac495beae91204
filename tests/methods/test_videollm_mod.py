"""VideoLLM-MoD: tokens that pass by a layer are absent from it and from its cache, and there again behind it."""

from __future__ import annotations

import passing_oracle
import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt
from torch.testing import assert_close

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models
from tokenreduce.methods.videollm_mod import Routers

KEEP, STEPS = 0.25, 4


@pytest.fixture(scope="module")
def model():
    return llava()


def routers(model, seed: int = 0, width: float = 0.1) -> tuple[tr.VideoLLMMoD, dict[int, torch.Tensor]]:
    """A method with routers that tell tokens apart, and the weights of each."""
    plain = tr.VideoLLMMoD(keep=KEEP)
    facts = family_of(model).offers()
    torch.manual_seed(seed)
    module = Routers(plain.routed(facts), facts.decoder_width)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=width)
    weights = tr.Weights.made(plain.header(facts, {}), module)
    return tr.VideoLLMMoD(keep=KEEP, weights=weights), {
        int(name): router.weight[0].detach() for name, router in module.routers.items()
    }


def pictures_of(model, ids) -> list[list[torch.Tensor]]:
    """Per sample, the columns of each picture."""
    found: list[list[torch.Tensor]] = [[] for _ in ids]
    for image in tr.trace(model).images:
        found[image.sample].append(image.columns)
    return found


@torch.no_grad()
def test_it_equals_a_plain_loop_also_while_an_answer_is_written(model):
    inputs = prompt(model, [1, 2, 1], "left")
    method, lines = routers(model)
    bare = model(**inputs).logits
    with tr.wrapped(model, method):
        found = model(**inputs, output_hidden_states=True)
        pictures = pictures_of(model, inputs["input_ids"])
        written = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        anew = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=False)[:, -STEPS:]
        beams = {"num_beams": 3, "max_new_tokens": STEPS, "do_sample": False}
        searched = model.generate(**inputs, **beams)
        static = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, cache_implementation="static")
        by_beam_alone = model.generate(**inputs, **beams, use_cache=False)
    expected = passing_oracle.logits(model, inputs, pictures, lines, KEEP)
    assert not torch.allclose(bare, found.logits, atol=1e-2)
    for b, own in enumerate(expected):  # float32: sums in another order
        assert_close(found.logits[b][inputs["attention_mask"][b].bool()], own, atol=2e-4, rtol=1e-4)
    assert written.tolist() == passing_oracle.greedy(model, inputs, STEPS, pictures, lines, KEEP)
    assert written.tolist() == anew.tolist() == static[:, -STEPS:].tolist()
    assert searched.tolist() == by_beam_alone.tolist()
    assert all(state.shape[1] == inputs["input_ids"].shape[1] for state in found.hidden_states)


@torch.no_grad()
@pytest.mark.parametrize("key", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_families(key):
    model = tiny_models.build(key)
    inputs = tiny_models.inputs(key, "mixed", model)
    method, lines = routers(model)
    with tr.wrapped(model, method):
        found = model(**inputs).logits
        pictures = pictures_of(model, inputs["input_ids"])
        written = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    expected = passing_oracle.logits(model, inputs, pictures, lines, KEEP)
    for b, own in enumerate(expected):
        assert_close(found[b][inputs["attention_mask"][b].bool()], own, atol=2e-4, rtol=1e-4)
    assert written.tolist() == passing_oracle.greedy(model, inputs, STEPS, pictures, lines, KEEP)


@torch.no_grad()
def test_a_layer_that_is_passed_by_holds_less_and_the_report_and_trace_say_so(model):
    inputs = prompt(model, [1, 1], "left")
    n, length = 16, inputs["input_ids"].shape[1]
    with tr.wrapped(model, tr.VideoLLMMoD(keep=KEEP)):
        cache = model(**inputs, use_cache=True).past_key_values
        report, (first, *_) = tr.report(model), tr.trace(model).images
    real = inputs["attention_mask"].sum(dim=1).max()
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [length, real - n + 4, length, real - n + 4, length]
    assert report.tokens_at_layer == [[n, n], [4, 4], [n, n], [4, 4], [n, n]]
    assert report.tokens_kept == [[n], [n]]
    assert report.kv_bytes == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
    assert report.flops < report.flops_unreduced
    assert [len(first.kept(layer)) for layer in range(5)] == [n, 4, n, 4, n]


@torch.no_grad()
def test_a_full_budget_changes_no_bit_and_a_projector_in_front_shares_its_work(model):
    inputs = prompt(model, [1, 1], "left")
    bare = model(**inputs).logits
    with tr.wrapped(model, tr.VideoLLMMoD(keep=1.0)):
        assert torch.equal(model(**inputs).logits, bare)
    with tr.wrapped(model, tr.DivPrune(keep=8), tr.VideoLLMMoD(keep=4)):
        model(**inputs)
        assert tr.report(model).tokens_at_layer == [[8, 8], [4, 4], [8, 8], [4, 4], [8, 8]]
        with_cache, without = (
            model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=use) for use in (True, False)
        )
        assert with_cache.tolist() == without.tolist()
    assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == 32


@pytest.mark.parametrize(
    ("key", "methods", "words"),
    [
        ("llava", [tr.VideoLLMMoD(), tr.FastV()], ["videollm_mod", "fastv", "allowed"]),
        ("qwen3_5", [tr.VideoLLMMoD(every=4)], ["decoder layer 3", "a state", "allowed"]),
        ("gemma3n", [tr.VideoLLMMoD()], ["keys of earlier ones"]),
        ("mllama", [tr.VideoLLMMoD()], ["stage 'llm'"]),
        ("llava", [tr.VideoLLMMoD(every=99)], ["every=99", "allowed"]),
    ],
)
def test_what_cannot_be_passed_by_is_refused_by_name(key, methods, words):
    with pytest.raises(ValueError, match="(?s)" + ".*".join(words)):
        tr.wrap(tiny_models.build(key), *methods)


def test_routers_learn_through_what_their_layers_add(model):
    data = [prompt(model, [1, 1], "left")]
    found = tr.train(model, "videollm_mod", data, keep=KEEP, settings=tr.TrainingSettings(steps=20, learning_rate=0.02))
    assert found.losses[-1] < found.losses[0]
    untrained = tr.VideoLLMMoD(keep=KEEP).untrained(family_of(model).offers())
    for name, before in untrained.state_dict().items():
        assert not torch.equal(found.weights.tensors[name], before), name


@torch.no_grad()
def test_turns_that_follow_and_looked_up_answers_read_what_each_layer_holds(model):
    inputs, more = prompt(model, [1]), torch.tensor([[5, 9, 11]])
    method, lines = routers(model)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    with tr.wrapped(model, method):
        first = model(**inputs, use_cache=True)
        pictures = pictures_of(model, inputs["input_ids"])
        second = model(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values).logits
        written, looked_up = (
            model.generate(**inputs, max_new_tokens=8, do_sample=False, **how)
            for how in ({}, {"prompt_lookup_num_tokens": 2})
        )
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1), "attention_mask": mask}
    expected = passing_oracle.logits(model, whole, pictures, lines, KEEP)[0][-3:]
    assert_close(second[0], expected, atol=2e-4, rtol=1e-4)  # float32: sums in another order
    assert written.tolist() == looked_up.tolist()


@torch.no_grad()
def test_counts_of_each_sample_are_refused(model):
    refused = pytest.raises(ValueError, match=r"videollm_mod.*unlike counts.*allowed")
    with tr.wrapped(model, tr.VideoLLMMoD()), tr.budget(model, keep=[0.25, 0.5]), refused:
        model(**prompt(model, [1, 1], "left"))


def test_weights_say_which_layers_are_routed():
    facts = family_of(llava()).offers()
    made = tr.VideoLLMMoD(every=3)
    weights = tr.Weights.made(made.header(facts, {}), made.untrained(facts))
    assert tr.VideoLLMMoD(weights=weights).routed(facts) == (2,) == made.routed(facts)
    with pytest.raises(ValueError, match="every=2, but the weights were trained with every=3"):
        tr.VideoLLMMoD(weights=weights, every=2).learned(facts)
