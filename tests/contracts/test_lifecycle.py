"""Contract 6: everything is per instance, comes off without a trace, and survives what people do to models."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt
from oracle import embeddings, run, shortened
from probe_methods import Ragged
from transformers import LlavaForConditionalGeneration

import tokenreduce as tr

TOLERANCE = 3e-5


@pytest.fixture
def model():
    return llava()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_unwrap_leaves_no_hook_no_attribute_and_the_same_numbers(model):
    inputs = prompt(model, [1, 2], "left")
    plain = logits(model, inputs)
    before = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for n, m in model.named_modules()}
    configs = {n: m.config for n, m in model.named_modules() if hasattr(m, "config")}
    assert tr.wrap(model, tr.FasterVLM(keep=5), tr.FastV(keep=2)) is model
    assert not torch.equal(logits(model, inputs), plain)
    assert tr.unwrap(model) is model
    after = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for n, m in model.named_modules()}
    assert after == before
    assert all(m.config is configs[n] for n, m in model.named_modules() if n in configs)
    assert torch.equal(logits(model, inputs), plain)
    with pytest.raises(ValueError, match="not wrapped"):
        tr.unwrap(model)


def test_wrapping_twice_is_refused_and_changes_nothing(model):
    inputs = prompt(model, [1])
    tr.wrap(model, "hiprune", keep=5)
    expected = logits(model, inputs)
    with pytest.raises(ValueError, match=r"wrapped already \(with hiprune\).*tr.unwrap"):
        tr.wrap(model, "fastv", keep=3)
    assert torch.equal(logits(model, inputs), expected)


def test_two_models_do_not_hear_each_other(model):
    other = llava(seed=1)
    inputs = prompt(model, [1])
    plain = logits(other, inputs)
    tr.wrap(model, "hiprune", keep=5)
    one = logits(model, inputs)
    assert torch.equal(logits(other, inputs), plain)
    tr.wrap(other, tr.FastV(keep=2))
    assert torch.equal(logits(model, inputs), one)
    assert tr.report(model).tokens_kept == [[5]]
    logits(other, inputs)
    assert tr.report(model).tokens_kept == [[5]]
    assert tr.report(other).tokens_kept == [[2]]
    tr.unwrap(model)
    assert tr.is_wrapped(other)


@pytest.mark.parametrize("method", [tr.HiPrune(keep=5), tr.FastV(keep=3)], ids=["projector", "llm"])
def test_a_deep_copy_is_a_wrapped_model_of_its_own(model, method):
    inputs = prompt(model, [1])
    tr.wrap(model, method)
    expected = logits(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, inputs), expected)
    tr.unwrap(model)
    plain = logits(model, inputs)
    assert not torch.equal(plain, expected)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(logits(twin, inputs), expected)
    tr.unwrap(twin)
    assert torch.equal(logits(twin, inputs), plain)


def test_saving_a_wrapped_model_saves_the_plain_one(model, tmp_path):
    inputs = prompt(model, [1])
    plain = logits(model, inputs)
    tr.wrap(model, tr.HiPrune(keep=5), tr.FastV(keep=3))
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not tr.is_wrapped(loaded)
    assert torch.equal(logits(loaded, inputs), plain)
    assert "tokenreduce" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("where", ["vision_tower", "language_model.layers.3", "language_model"])
def test_an_exception_in_the_middle_leaves_nothing_behind(model, where):
    inputs = prompt(model, [1])
    with tr.wrapped(model, tr.HiPrune(keep=8), tr.FastV(keep=3)):
        expected = logits(model, inputs)

        def fail(*args, **kwargs):
            raise RuntimeError("boom")

        handle = model.model.get_submodule(where).register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="boom"):
            logits(model, inputs)
        handle.remove()
        assert torch.equal(logits(model, inputs), expected)
    assert not tr.is_wrapped(model)


def test_an_exception_inside_the_with_block_unwraps(model):
    with pytest.raises(KeyError), tr.wrapped(model, "hiprune", keep=5):
        raise KeyError
    assert not tr.is_wrapped(model)


def test_another_budget_for_a_while(model):
    inputs = prompt(model, [1])
    tr.wrap(model, "hiprune", keep=5)
    expected = logits(model, inputs)
    with tr.budget(model, keep=0.5):
        logits(model, inputs)
        assert tr.report(model).tokens_kept == [[8]]
    assert torch.equal(logits(model, inputs), expected)
    with pytest.raises(ValueError, match="keep=17 exceeds the 16"), tr.budget(model, keep=17):
        pass
    assert torch.equal(logits(model, inputs), expected)


def test_trace_and_report_before_the_first_prompt_say_what_to_do(model):
    tr.wrap(model, "hiprune", keep=5)
    for read in (tr.trace, tr.report):
        with pytest.raises(ValueError, match="run the wrapped model"):
            read(model)


def test_a_cache_is_freed_with_its_last_reference(model):
    """No reference cycle keeps keys and values alive until the next garbage collection."""
    with tr.wrapped(model, tr.FastV(keep=3)):
        gc.disable()
        try:
            cache = model(**prompt(model, [1])).past_key_values
            seen = weakref.ref(cache)
            del cache
            assert seen() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("methods", [(tr.HiPrune(keep=5),), (tr.HiPrune(keep=8), tr.FastV(keep=3)), (Ragged(),)])
def test_loss_equals_the_loss_of_the_shortened_sequence(model, methods):
    inputs = prompt(model, [1, 2], "left")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
    labels = labels.masked_fill(inputs["attention_mask"].cumsum(1) < 2, -100)  # nothing real predicts a first token
    bare = embeddings(model, inputs)
    with tr.wrapped(model, *methods), torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        trace = tr.trace(model)
    losses = []
    for b in range(2):
        embeds, ids, keep_at = shortened(inputs, b, bare, trace)
        left = torch.ones(len(embeds), dtype=torch.bool)
        for stays in keep_at.values():
            left &= stays
        gone = inputs["input_ids"][b] == IMAGE_TOKEN
        gone[trace.kept[b]] = False
        row = labels[b][inputs["attention_mask"][b].bool() & ~gone][left]
        predicted = run(model, embeds, ids, keep_at)
        losses.append(torch.nn.functional.cross_entropy(predicted[:-1], row[1:], reduction="none", ignore_index=-100))
    counted = torch.cat(losses)
    expected = counted.sum() / (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", [tr.HiPrune(keep=5), tr.FastV(keep=3), tr.Pool(keep=4)], ids=lambda m: m.name)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_and_without_checkpointing(model, method, reentrant):
    inputs = prompt(model, [1, 2], "left")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
    tr.wrap(model, method)
    model.train()

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert expected["model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"].abs().sum() > 0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    again = gradients()
    assert again.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value, atol=1e-4, rtol=1e-3)


def test_logits_to_keep_and_reduced_output(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, "hiprune", keep=5), torch.no_grad():
        full = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, full[:, -3:])
        picked = torch.tensor([0, 2, 20])
        torch.testing.assert_close(model(**inputs, logits_to_keep=picked).logits, full[:, picked])
        as_tuple = model(**inputs, return_dict=False)
        assert torch.equal(as_tuple[0], full)
        assert {h.shape[1] for h in model(**inputs, output_hidden_states=True).hidden_states} == {full.shape[1]}
    with tr.wrapped(model, "hiprune", keep=5, output_length="reduced"), torch.no_grad():
        short = model(**inputs).logits
        assert short.shape[1] == full.shape[1] - 11
        torch.testing.assert_close(short[:, -1], full[:, -1])
    with pytest.raises(ValueError, match="output_length='short'"):
        tr.wrap(model, "hiprune", output_length="short")


def test_a_peft_model(model):
    peft = pytest.importorskip("peft")
    inputs = prompt(model, [1])
    config = peft.LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    plain = logits(adapted, inputs)
    tr.wrap(adapted, "hiprune", keep=5)
    short = logits(adapted, inputs)
    assert tr.report(adapted).tokens_kept == [[5]]
    tr.unwrap(adapted)
    assert torch.equal(logits(adapted, inputs), plain)
    with tr.wrapped(adapted.get_base_model(), "hiprune", keep=5):
        assert torch.equal(logits(adapted, inputs), short)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [tr.HiPrune(keep=5), tr.FastV(keep=3), tr.Pool(keep=4)], ids=lambda m: m.name)
def test_half_precision(model, method, dtype):
    model = model.to(dtype)
    inputs = prompt(model, [1, 2], "left")
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with tr.wrapped(model, method):
        assert logits(model, inputs).dtype == dtype
        cached = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert cached.shape[1] == inputs["input_ids"].shape[1] + 3


def test_compiled_after_wrapping_gives_the_same_numbers(model):
    inputs = prompt(model, [1])
    with tr.wrapped(model, tr.HiPrune(keep=8), tr.FastV(keep=3)):
        expected = logits(model, inputs)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(logits(compiled, inputs), expected, atol=TOLERANCE, rtol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["tome", "pitome"])
def test_a_deep_copy_and_another_budget_of_a_model_merged_inside_its_tower(model, name):
    inputs = prompt(model, [1])
    tr.wrap(model, name, keep=6)
    expected = logits(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, inputs), expected)
    with tr.budget(twin, keep=4):
        assert not torch.equal(logits(twin, inputs), expected)
        assert tr.report(twin).tokens_kept == [[4]]
    assert torch.equal(logits(twin, inputs), expected)
    assert tr.report(model).tokens_kept == [[6]]
