"""DyMU's virtual unmerging: the language model reads merged tokens at all of their places, as a reference that repeats them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reduced
import torch
import unmerging_oracle

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo

#: one axis of positions; three, in a tower that packs; the same with deep-stacked features; squares of patches
KEYS = ["llava", "qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.long), "internvl"]
METHODS = {"half": tr.DyMU(keep=0.5, unmerge=True), "unlike": tr.DyMU(calibration=[0.3] * 3, unmerge=True)}
STEPS = 4


def apart(method: tr.DyMU) -> tr.DyMU:
    return replace(method, unmerge=False)


def method_for(key: str, name: str) -> tr.DyMU:
    """A picture of unlike numbers of tokens needs a threshold for each block."""
    if name == "half":
        return METHODS[name]
    depth = len(family_of(reduced.model(key)).layers())
    return tr.DyMU(calibration=[0.3] * depth, unmerge=True)


@pytest.mark.parametrize("kind", ["mixed", "right"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("key", KEYS)
def test_it_equals_rows_that_are_repeated_and_averaged(key, name, kind):
    model, method = reduced.model(key), method_for(key, name)
    inputs = zoo.inputs(key, kind, model)
    output, trace = reduced.forward(model, inputs, method)
    assert all(len(image.kept()) < image.tokens_in for image in trace.images)
    for b, sample in enumerate(unmerging_oracle.merged(model, inputs, apart(method))):
        expected = unmerging_oracle.logits(model, sample)
        torch.testing.assert_close(output.logits[b, sample.whole.columns], expected, atol=3e-5, rtol=0)
    apart_from, _ = reduced.forward(model, inputs, apart(method))
    assert not torch.allclose(output.logits, apart_from.logits, atol=1e-3)


@pytest.mark.parametrize("key", KEYS)
def test_what_it_writes(key):
    model, method = reduced.model(key), method_for(key, "half")
    inputs = zoo.inputs(key, "mixed", model)
    expected = [
        unmerging_oracle.greedy(model, sample, STEPS)
        for sample in unmerging_oracle.merged(model, inputs, apart(method), generate=True)
    ]
    for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        written, _ = reduced.write(model, inputs, method, steps=STEPS, **more)
        assert written == expected, more
    alone = zoo.inputs(key, "single", model)
    (sample,) = unmerging_oracle.merged(model, alone, apart(method), generate=True)
    looked_up, _ = reduced.write(model, alone, method, steps=STEPS, prompt_lookup_num_tokens=2)
    assert looked_up == [unmerging_oracle.greedy(model, sample, STEPS)]


@pytest.mark.parametrize("key", KEYS)
def test_beams_hold_what_the_whole_prompt_says(key):
    model, method = reduced.model(key), method_for(key, "half")
    inputs = zoo.inputs(key, "mixed", model)
    with tr.wrapped(model, method):
        options = {"max_new_tokens": STEPS, "num_beams": 3, "do_sample": False, "return_dict_in_generate": True}
        found = model.generate(**inputs, **options, output_scores=True)
        again = model.generate(**inputs, **options, output_scores=True, use_cache=False)
    assert torch.equal(found.sequences, again.sequences)
    torch.testing.assert_close(found.sequences_scores, again.sequences_scores, atol=3e-5, rtol=0)
    for b, sample in enumerate(unmerging_oracle.merged(model, inputs, apart(method), generate=True)):
        written, score, following = found.sequences[b, -STEPS:].tolist(), 0.0, int(sample.whole.ids[0, -1]) + 1
        for step, token in enumerate(written):
            score += float(unmerging_oracle.logits(model, sample)[-1].log_softmax(dim=-1)[token])
            sample = unmerging_oracle.following(model, sample, token, following + step)
        assert score / STEPS == pytest.approx(float(found.sequences_scores[b]), abs=1e-4)


def test_a_second_turn_reads_the_first_picture_and_one_of_its_own():
    model, method = reduced.model("llava"), METHODS["half"]
    one, two = (zoo.case("llava", "single", model, seed=seed) for seed in (0, 1))
    both = zoo.joined("llava", one, two)
    with tr.wrapped(model, method), torch.no_grad():
        whole = model(**both).logits
        first = model(**one.inputs, use_cache=True)
        mask = both["attention_mask"]
        second = model(**{**two.inputs, "attention_mask": mask}, past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, whole[:, -second.shape[1] :], atol=3e-5, rtol=0)


@pytest.mark.parametrize("key", ["llava", "qwen2_5_vl"])
def test_a_full_budget_changes_no_bit_and_nothing_is_left(key):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    with torch.no_grad():
        bare = model(**inputs).logits
        with tr.wrapped(model, tr.DyMU(keep=1.0, unmerge=True)):
            assert torch.equal(model(**inputs).logits, bare)
        with tr.wrapped(model, METHODS["half"]):
            model(**inputs)
        assert torch.equal(model(**inputs).logits, bare)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.get_decoder().modules())


def test_the_report_counts_rows_once_and_the_cache_whole():
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "single", model)
    with tr.wrapped(model, METHODS["half"]), torch.no_grad():
        model(**inputs, use_cache=True)
        report = tr.report(model)
        ((n,),), ((k,),) = report.tokens_in, report.tokens_kept
        assert k == n // 2
        assert report.tokens_at_layer == [[k]] * 5
        assert report.kv_bytes == report.kv_bytes_unreduced
    layers = model.get_decoder().layers
    once = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if name.endswith("proj.weight"))
    assert report.flops_unreduced - report.flops == 2 * (n - k) * once


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("qwen3_5", r"layers of this qwen3_5 model keep a state"),
        ("mllama", r"a mllama model has no decoder whose sequence holds its pictures|does not offer"),
    ],
)
def test_what_cannot_unmerge_is_refused(key, said):
    model = reduced.model(key)
    with pytest.raises(ValueError, match=said):
        tr.wrap(model, METHODS["half"])
    assert not tr.is_wrapped(model)


def test_other_methods_and_orders_are_refused():
    model = reduced.model("llava")
    with pytest.raises(ValueError, match=r"'fastv' would take away tokens that it spreads; allowed: the method alone"):
        tr.wrap(model, METHODS["half"], tr.FastV(keep=0.5))
    for more in ({"positions": "renumber"}, {"output_order": "reference"}):
        with pytest.raises(
            ValueError, match=r"unmerge=True with .*; allowed: positions='keep' and output_order='raster'"
        ):
            tr.DyMU(keep=0.5, unmerge=True, **more)
