"""One budget for each sample of a call: each is treated as if it were alone, and nobody else sees it."""

from __future__ import annotations

import threading

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr

KEEPS = [0.25, None, 3]


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture(scope="module")
def inputs(model):
    return prompt(model, [1, 1, 2], pad="left")


def alone(inputs, b):
    """Sample b by itself, without its padding; pictures are one, one and two."""
    real = inputs["attention_mask"][b].bool()
    pictures = {0: slice(0, 1), 1: slice(1, 2), 2: slice(2, 4)}[b]
    return {
        "input_ids": inputs["input_ids"][b : b + 1, real],
        "attention_mask": inputs["attention_mask"][b : b + 1, real],
        "pixel_values": inputs["pixel_values"][pictures],
    }


def last(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@pytest.mark.parametrize("method", ["hiprune", "fastv", "promptdistill", "sparsevlm", "pool"])
def test_each_sample_is_reduced_as_if_it_were_alone(model, inputs, method):
    whole = last(model, alone(inputs, 1))
    with tr.wrapped(model, method, keep=0.5):
        with tr.budget(model, keep=KEEPS):
            together = last(model, inputs)
            kept = tr.report(model).tokens_kept
        singles = [whole]
        for b in (0, 2):
            with tr.budget(model, keep=KEEPS[b]):
                singles.append(last(model, alone(inputs, b)))
                assert tr.report(model).tokens_kept == [kept[b]]
    assert kept[1] == [16]
    assert kept[0] != kept[2][:1]
    torch.testing.assert_close(together, torch.cat([singles[1], singles[0], singles[2]]), atol=1e-5, rtol=1e-5)


def test_generation_with_a_cache_equals_without(model, inputs):
    def answer(use_cache):
        return model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache)

    with tr.wrapped(model, "fastv", keep=0.5), tr.budget(model, keep=KEEPS):
        assert torch.equal(answer(True), answer(False))


def test_beams_share_the_budget_of_their_sample(model, inputs):
    with tr.wrapped(model, "hiprune", keep=0.5), tr.budget(model, keep=KEEPS):
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        kept = tr.report(model).tokens_kept
    assert [row[0] for row in kept[:: len(kept) // 3]] == [4, 16, 3]


def test_none_is_off_and_scopes_nest(model, inputs):
    whole = last(model, inputs)
    with tr.wrapped(model, "hiprune", keep=0.5):
        with tr.budget(model, keep=None):
            assert torch.equal(last(model, inputs), whole)
            with tr.budget(model, keep=[1, 1, 1]):
                last(model, inputs)
                assert tr.report(model).tokens_kept == [[1], [1], [1, 1]]
            assert torch.equal(last(model, inputs), whole)
        last(model, inputs)
        assert tr.report(model).tokens_kept == [[8], [8], [8, 8]]
        with tr.budget(model, keep=[1, 1.0, None]):
            last(model, inputs)
            assert tr.report(model).tokens_kept == [[1], [16], [16, 16]]


def test_requests_at_the_same_time_do_not_see_each_other(model, inputs):
    met, kept = threading.Barrier(2), {}

    def request(name, keep):
        with tr.budget(model, keep=keep):
            met.wait(timeout=60)
            last(model, inputs)
            kept[name] = tr.report(model).tokens_kept

    with tr.wrapped(model, "hiprune", keep=0.5):
        threads = [threading.Thread(target=request, args=given) for given in (("a", KEEPS), ("b", 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kept == {"a": [[4], [16], [3, 3]], "b": [[2], [2], [2, 2]]}


def test_the_budget_travels_with_the_call(model, inputs):
    def kept(call):
        call()
        return tr.report(model).tokens_kept

    def answer(**more):
        return lambda: model.generate(**inputs, max_new_tokens=2, do_sample=False, **more)

    with tr.wrapped(model, "hiprune", keep=0.5):
        assert kept(answer(tr_keep=KEEPS)) == [[4], [16], [3, 3]]
        assert kept(lambda: last(model, {**inputs, "tr_keep": 2})) == [[2], [2], [2, 2]]
        assert kept(answer(tr_keep=None)) == [[16], [16], [16, 16]]
        with tr.budget(model, keep=1):
            assert kept(answer(tr_keep=2)) == [[2], [2], [2, 2]]
            assert kept(answer()) == [[1], [1], [1, 1]]
        with pytest.raises(ValueError, match=r"keep=1\.5"):
            answer(tr_keep=1.5)()
        assert kept(answer()) == [[8], [8], [8, 8]]


def test_calls_at_the_same_time_have_their_own_budgets(model, inputs):
    met, kept = threading.Barrier(2), {}

    def request(name, keep):
        for _ in range(3):
            met.wait(timeout=60)
            last(model, {**inputs, "tr_keep": keep})
            kept.setdefault(name, []).append(tr.report(model).tokens_kept)

    with tr.wrapped(model, "fastv", keep=0.5):
        threads = [threading.Thread(target=request, args=given) for given in (("a", KEEPS), ("b", 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kept == {"a": [[[4], [16], [3, 3]]] * 3, "b": [[[2], [2], [2, 2]]] * 3}


def test_methods_that_read_the_same_are_exchanged_in_a_call(model, inputs):
    expected = {}
    for method, keep in (("uniform", 0.5), ("fastervlm", 3)):
        with tr.wrapped(model, method, keep=keep):
            expected[method] = last(model, inputs)
    with tr.wrapped(model, "visionzip", keep=0.5):
        own = last(model, inputs)
        assert torch.equal(last(model, {**inputs, "tr_method": "uniform"}), expected["uniform"])
        assert tr.report(model).methods == ("uniform",)
        assert torch.equal(last(model, {**inputs, "tr_method": "fastervlm", "tr_keep": 3}), expected["fastervlm"])
        assert torch.equal(last(model, {**inputs, "tr_method": tr.FasterVLM(keep=3)}), expected["fastervlm"])
        assert torch.equal(last(model, inputs), own)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("random", r"'random' reads ImageFingerprint\(\).*wrapped with hiprune.*unwrap, and wrap with 'random'"),
        ("tome", "'tome' acts at stage 'encoder' layer 0.*hiprune, which acts at stage 'projector'"),
        ("hiprun", "Did you mean 'hiprune'"),
    ],
)
def test_methods_that_need_other_hooks_are_not_exchanged(model, inputs, method, told):
    with tr.wrapped(model, "hiprune", keep=0.5):
        with pytest.raises(ValueError, match=told):
            last(model, {**inputs, "tr_method": method})
        last(model, inputs)
        assert tr.report(model).tokens_kept == [[8], [8], [8, 8]]


def test_one_method_in_the_place_of_two_needs_a_budget(model, inputs):
    with tr.wrapped(model, tr.FasterVLM(keep=0.5), tr.Uniform(keep=0.5)):
        with pytest.raises(ValueError, match=r"in the place of 2 methods has no budget; say tr_keep="):
            last(model, {**inputs, "tr_method": "fastervlm"})
        last(model, {**inputs, "tr_method": "fastervlm", "tr_keep": 3})
        assert tr.report(model).tokens_kept == [[3], [3], [3, 3]]


def test_what_cannot_be_meant_is_told(model, inputs):
    with tr.wrapped(model, "hiprune", keep=0.5):
        with tr.budget(model, keep=[0.5, 0.25]), pytest.raises(ValueError, match=r"2 budgets for a call of 3 sample"):
            last(model, inputs)
        with pytest.raises(ValueError, match=r"keep=1\.5"), tr.budget(model, keep=[0.5, 1.5, None]):
            pass
        last(model, inputs)
        assert tr.report(model).tokens_kept == [[8], [8], [8, 8]]
    refused = pytest.raises(ValueError, match=r"'tome' acts at stage 'encoder'.*one call for each")
    with tr.wrapped(model, "tome", keep=0.5), refused, tr.budget(model, keep=KEEPS):
        pass
    with pytest.raises(TypeError, match=r"tr\.budget\(model, keep=\[0\.25"):
        tr.wrap(model, "hiprune", keep=[0.5, 0.25])
