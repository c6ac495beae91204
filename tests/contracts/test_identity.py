"""Contract 1: a full budget is the identity, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from models import llava, prompt, tokens_per_image

import tokenreduce as tr
from tokenreduce.method import registry


def hooks(model) -> list[tuple[str, int, int]]:
    return [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]


def method(name: str, keep):
    return tr.FasterVLM(keep=keep) if name == "fastervlm" else registry()[name](keep=keep)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", ["fraction", "count"])
@pytest.mark.parametrize("name", registry())
def test_full_budget_is_bit_exact(name, budget, attention):
    model = llava(attention=attention)
    with torch.no_grad():
        model(**prompt(model, [1]))  # transformers installs hooks of its own, once, in the first forward pass
    before, keys = hooks(model), list(model.state_dict())
    keep = 1.0 if budget == "fraction" else tokens_per_image(model)
    for images, pad in (([1], None), ([2, 0, 1], "left"), ([1, 2], "right")):
        inputs = prompt(model, images, pad)
        with torch.no_grad():
            expected = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False) if pad != "right" else None
        with tr.wrapped(model, method(name, keep)), torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
            if tokens is not None:
                assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
            assert tr.report(model).tokens_kept == tr.report(model).tokens_in
            assert tr.report(model).flops == tr.report(model).flops_unreduced
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
    assert hooks(model) == before
    assert list(model.state_dict()) == keys
    assert not any(
        "tokenreduce" in str(getattr(m, "config", None) and m.config._attn_implementation) for m in model.modules()
    )


@pytest.mark.parametrize("name", registry())
def test_text_alone_is_untouched(name):
    model = llava()
    inputs = prompt(model, [0, 0], "left")
    with torch.no_grad():
        expected = model(**inputs).logits
    with tr.wrapped(model, method(name, 0.25)), torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
        assert tr.trace(model).kept[0].tolist() == []
        assert tr.report(model).tokens_in == [[], []]


@pytest.mark.parametrize("keep", [1, 2, 7, 15, 16, 0.01, 0.25, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("name", registry())
def test_the_budget_is_filled_exactly_and_in_source_order(name, keep):
    model = llava()
    inputs = prompt(model, [2, 1], "left")
    n = tokens_per_image(model)
    count = keep if isinstance(keep, int) else max(1, round(keep * n))
    if "encoder" in registry()[name].stages and count < 2:
        with pytest.raises(ValueError, match="leave at least 2"):  # three blocks can halve 16 patches three times
            tr.wrap(model, method(name, keep))
        return
    with tr.wrapped(model, method(name, keep)), torch.no_grad():
        model(**inputs)
        trace, report = tr.trace(model), tr.report(model)
    assert report.tokens_in == [[n, n], [n]]
    assert report.tokens_kept == [[count, count], [count]]
    last = max(trace.kept_at, default=0)
    kept = trace.kept_at[last] if trace.kept_at else trace.kept
    for b, images in enumerate((2, 1)):
        assert len(kept[b]) == images * count
        assert kept[b].tolist() == sorted(set(kept[b].tolist()))
        assert (inputs["input_ids"][b][kept[b]] == model.config.image_token_id).all()
